// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

import { $ } from '../dom.js';
import { enter, entrance } from '../enter.js';

$('why').hidden = !location.search.includes('to=');
entrance(({ email, password }) => enter(email, password));
