/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/* As much of xen/time.h as the time code needs to run alone. */

#include <stdint.h>

typedef int64_t s_time_t;
s_time_t get_s_time(void);
#define NOW() ((s_time_t)get_s_time())
#define SECONDS(_s) ((s_time_t)((_s) * 1000000000ULL))
#define MILLISECS(_ms) ((s_time_t)((_ms) * 1000000ULL))
