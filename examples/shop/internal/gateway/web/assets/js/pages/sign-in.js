// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

import { enter, entrance } from '../enter.js';

entrance(({ email, password }) => enter(email, password));
