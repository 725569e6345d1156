// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

import { api } from '../api.js';
import { enter, entrance } from '../enter.js';

entrance(async ({ name, email, password }) => {
  await api('POST', '/api/customers', { body: { name, email, password } });
  await enter(email, password);
});
