/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * As much of Xen as its time code needs to run alone: one domain with one
 * vCPU, a clock that stands still, and timers that remember what was asked of
 * them. The same for stock and for patched code, except for the fields that
 * the patches add.
 */

#include <inttypes.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <xen/time.h>
#ifdef PATCHED
#define CONFIG_TIME_DILATION
#define XEN_GUEST_HANDLE_PARAM(type) type *
#include <xen/tdf.h>
#else
#define NR_DOMAIN_WATCHDOG_TIMERS 2
#endif

#define CONFIG_X86
#define CONFIG_COMPAT
#define __XEN_INTERFACE_VERSION__ 0x00040f00
#define EINVAL 22
#define EFAULT 14
#define ENOSPC 28

typedef uint64_t u64;
typedef uint32_t u32;
typedef int64_t s64;
typedef int8_t s8;

#define cf_check
#define likely(x) (x)
#define unlikely(x) (x)
#define noinline
#define smp_rmb() __asm__ __volatile__ ( "" ::: "memory" )
#define smp_wmb() smp_rmb()
#define read_atomic(p) __atomic_load_n(p, __ATOMIC_RELAXED)
#define cmpxchg(p, o, n) __sync_val_compare_and_swap(p, o, n)
#define max(a, b) ((a) > (b) ? (a) : (b))
#define gdprintk(...) ((void)0)
#define version_update_begin(v) (((v) + 1) | 1)
#define version_update_end(v) ((v) + 1)

typedef int spinlock_t;
#define spin_lock(l) ((void)(l))
#define spin_unlock(l) ((void)(l))
#define test_bit(nr, p) ((*(p) >> (nr)) & 1)
#define clear_bit(nr, p) (*(p) &= ~(1U << (nr)))
static bool test_and_set_bit(unsigned int nr, uint32_t *p)
{
    bool old = test_bit(nr, p);

    *p |= 1U << nr;

    return old;
}

/* What was asked of a timer: the last expiry, and a bit for each operation. */
struct timer { s_time_t expires; int asked; };
enum { STOPPED = 1, SET = 2, MIGRATED = 4, EVENT = 8 };
static void stop_timer(struct timer *t) { t->asked |= STOPPED; }
static void migrate_timer(struct timer *t, int cpu) { t->asked |= MIGRATED; }
static void set_timer(struct timer *t, s_time_t expires)
{
    t->asked |= SET;
    t->expires = expires;
}

static s_time_t now;
s_time_t get_s_time(void) { return now; }

#define xen_mk_ullong(x) x ## ULL
#include "extracted-types.h" /* vcpu_time_info, its flags, vcpu_runstate_info */

struct compat_vcpu_runstate_info
{
    int32_t state;
    uint64_t state_entry_time, time[4];
} __attribute__(( packed ));
#define XLAT_vcpu_runstate_info(to, from) \
    (*(to) = (struct compat_vcpu_runstate_info){ \
        (from)->state, (from)->state_entry_time, \
        { (from)->time[0], (from)->time[1], (from)->time[2], (from)->time[3] } })

struct vcpu_set_singleshot_timer { uint64_t timeout_abs_ns; uint32_t flags; };
struct time_scale { int shift; u32 mul_frac; };
struct cpu_time_stamp { u64 local_tsc; s_time_t local_stime, master_stime; };
struct cpu_time { struct cpu_time_stamp stamp; struct time_scale tsc_scale; };
static struct cpu_time this_cpu_cpu_time;
#define this_cpu(var) this_cpu_##var
#define smp_processor_id() 0

struct vcpu_info { struct vcpu_time_info time; };
#define vcpu_info(v, field) ((v)->vcpu_info->field)

struct shared_info
{
    struct { uint32_t wc_version, wc_sec, wc_nsec, wc_sec_hi; } native;
    struct { struct { uint32_t wc_sec_hi; } arch; } compat;
};
#define shared_info(d, field) ((d)->shared_info->native.field)

struct pl_time { int64_t stime_offset; };
struct cpu_user_regs { int none; };

struct domain
{
    bool hvm, pv32, assist;
    struct shared_info *shared_info;
    struct { int64_t seconds; } time_offset;
    spinlock_t watchdog_lock;
    uint32_t watchdog_inuse_map;
    struct timer watchdog_timer[NR_DOMAIN_WATCHDOG_TIMERS];
    struct {
        bool vtsc;
        s_time_t vtsc_last;
        uint64_t vtsc_offset;
        struct time_scale vtsc_to_ns, ns_to_vtsc;
        struct { struct pl_time *pl_time; } hvm;
    } arch;
#ifdef PATCHED
    struct domain_tdf tdf;
#endif
};

struct vcpu
{
    struct domain *domain;
    struct vcpu_info *vcpu_info;                    /* up to 4.17 */
    struct { struct vcpu_info *map; } vcpu_info_area;     /* since */
    int processor;
    spinlock_t periodic_timer_lock;
    s_time_t periodic_period, periodic_last_event;
    struct vcpu_runstate_info runstate;
    union {
        struct { struct vcpu_runstate_info *p; } native;
        struct { struct compat_vcpu_runstate_info *p; } compat;
    } runstate_guest;
    struct { struct vcpu_runstate_info *map; } runstate_guest_area; /* 4.18 */
    bool runstate_guest_area_compat;
    struct timer periodic_timer, singleshot_timer;
    struct {
        unsigned long flags;
        struct { struct vcpu_time_info pending_system_time; } pv;
        struct { int64_t stime_offset; uint64_t cache_tsc_offset; } hvm;
    } arch;
#ifdef PATCHED
    struct vcpu_tdf tdf;
#endif
};

#ifdef PATCHED
#include <xen/tdf-inline.h>
#endif

static struct vcpu the_vcpu;
#define current (&the_vcpu)
#define TF_kernel_mode 1
#define is_hvm_domain(d) ((d)->hvm)
#define is_pv_domain(d) (!(d)->hvm)
#define is_pv_32bit_domain(d) ((d)->pv32)
#define has_32bit_shinfo(d) ((d)->pv32)
#define copy_from_guest(ptr, arg, n) (memcpy(ptr, arg, sizeof(*(ptr)) * (n)), 0)
static unsigned long raw_copy_to_guest(void *to, const void *from, size_t n)
{
    memcpy(to, from, n);

    return 0;
}
#define copy_to_guest(arg, ptr, n) \
    raw_copy_to_guest(arg, ptr, sizeof(*(ptr)) * (n))
#define __copy_to_guest(handle, ptr, n) copy_to_guest((handle).p, ptr, n)

/* The update flag travels in a byte of its own, before and after the rest. */
static int raw_bytes;
static unsigned long __raw_copy_to_guest(void *to, const void *from, size_t n)
{
    raw_bytes = raw_bytes << 8 | *(const uint8_t *)from;

    return raw_copy_to_guest(to, from, n);
}
#define __user
#define write_atomic(p, x) (*(p) = (x))
#define ARRAY_SIZE(x) (sizeof(x) / sizeof((x)[0]))
#define VM_ASSIST(d, flag) ((d)->assist)
#define runstate_guest(v) ((v)->runstate_guest.native)
#define guest_handle_is_null(handle) ((handle).p == NULL)
struct guest_memory_policy { bool nested_guest_mode; };
static void update_guest_memory_policy(struct vcpu *v,
                                       struct guest_memory_policy *policy) {}
static void vcpu_runstate_get(const struct vcpu *v,
                              struct vcpu_runstate_info *runstate)
{
    s_time_t delta = now - v->runstate.state_entry_time;

    *runstate = v->runstate;
    if ( delta > 0 )
        runstate->time[runstate->state] += delta;
}

static bool hvm_tsc_scaling_supported, tsc_is_clocksource, secondary_done;
static struct vcpu_time_info secondary;
static bool clocksource_is_tsc(void) { return tsc_is_clocksource; }
static u64 hvm_scale_tsc(const struct domain *d, u64 tsc) { return tsc / 3 + 1; }
static bool update_secondary_system_time(struct vcpu *v,
                                         struct vcpu_time_info *u)
{
    secondary = *u;

    return secondary_done;
}
static void send_timer_event(struct vcpu *v) { v->singleshot_timer.asked |= EVENT; }

static uint64_t wc_sec;
static unsigned int wc_nsec;
static spinlock_t wc_lock;
