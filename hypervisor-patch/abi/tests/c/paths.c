/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * Runs the time paths of a Xen tree, as they were cut out of it, on records
 * from standard input.
 */

#include "xen.h"
#include "extracted.h"

static long vcpuop_singleshot(struct vcpu *v, void *arg)
{
    struct domain *d = v->domain;
    long rc = 0;

    (void)d;
    switch ( 0 )
    {
    default:
#include "extracted-singleshot.h"
    }

    return rc;
}

static long vcpuop_runstate(struct vcpu *v, void *arg)
{
    long rc = 0;

    switch ( 0 )
    {
    default:
#include "extracted-runstate.h"
    }

    return rc;
}

enum { RECORD, RDTSC, WALLCLOCK, LOCALTIME, SET_TIMER_OP, SINGLESHOT, PERIODIC,
       WATCHDOG, RUNSTATE_AREA, RUNSTATE };
enum { VTSC = 1, HVM = 2, SCALING = 4, TSC_SOURCE = 8, FORCE = 16,
       SECONDARY = 32, KERNEL = 64, PV32 = 128, REPEAT = 256, DILATED = 512 };

#define IN 32
#define OUT 12

int main(void)
{
    int64_t in[IN], out[OUT];

    while ( fread(in, sizeof(in), 1, stdin) == 1 )
    {
        int flags = in[1];
        struct pl_time pl = { .stime_offset = in[12] };
        struct shared_info shared = { .native.wc_version = in[15] };
        struct vcpu_info info = {};
        struct domain dom = {
            .hvm = flags & HVM,
            .pv32 = flags & PV32,
            .assist = flags & KERNEL,
            .shared_info = &shared,
            .time_offset.seconds = in[14],
            .watchdog_inuse_map = in[15] & 3,
            .arch = {
                .vtsc = flags & VTSC,
                .vtsc_last = in[10],
                .vtsc_offset = in[9],
                .vtsc_to_ns = { .mul_frac = in[7], .shift = in[8] },
                .ns_to_vtsc = { .mul_frac = in[7] ^ 0x5555, .shift = -in[8] },
                .hvm.pl_time = &pl,
            },
        }, *d = &dom;
        struct vcpu *v = &the_vcpu;

        *v = (struct vcpu){
            .domain = d,
            .vcpu_info = &info,
            .vcpu_info_area.map = &info,
            .periodic_period = in[16],
            .periodic_last_event = in[17],
            .arch = {
                .flags = flags & KERNEL ? TF_kernel_mode : 0,
                .hvm = { .stime_offset = in[11], .cache_tsc_offset = in[13] },
            },
        };
        v->runstate = (struct vcpu_runstate_info){
            .state = in[15] & 3,
            .state_entry_time = in[4],
            .time = { in[9], in[11], in[12], in[13] },
        };
        now = in[2];
        this_cpu_cpu_time = (struct cpu_time){
            .stamp = { .local_tsc = in[3], .local_stime = in[4] },
            .tsc_scale = { .mul_frac = in[5], .shift = in[6] },
        };
        hvm_tsc_scaling_supported = flags & SCALING;
        tsc_is_clocksource = flags & TSC_SOURCE;
        secondary_done = flags & SECONDARY;
        secondary = (struct vcpu_time_info){};
        wc_sec = in[18];
        wc_nsec = in[19];
#ifdef PATCHED
        dom.tdf.seg.num = dom.tdf.seg.den = 1;
        if ( flags & DILATED )
        {
            dom.tdf.active = true;
            dom.tdf.seg = (struct tdf_segment){
                .real0 = in[20], .virt0 = in[21], .num = in[22], .den = in[23],
            };
            dom.tdf.wall.frozen = true;
            dom.tdf.wall.sec = in[18];
            dom.tdf.wall.nsec = in[19];
            /* dom0 has set the host's clock since. */
            wc_sec += 1000;
            wc_nsec /= 2;
            for ( int i = 0; i < 4; i++ )
            {
                v->tdf.runstate[i].real = in[24 + i];
                v->tdf.runstate[i].virt = in[28 + i];
            }
        }
#endif
        memset(out, 0, sizeof(out));

        switch ( in[0] )
        {
        case RECORD:
            info.time.version = in[15];
            __update_vcpu_system_time(v, flags & FORCE);
            if ( flags & REPEAT )
            {
                /* Nothing has changed: the record may not be written again. */
                info.time.pad0 = 0;
                __update_vcpu_system_time(v, 0);
            }
            memcpy(&out[0], &info.time, 32);
            memcpy(&out[4], &v->arch.pv.pending_system_time, 32);
            memcpy(&out[8], &secondary, 32);
            break;

        case RDTSC:
            out[0] = pv_soft_rdtsc(v, NULL);
            out[1] = d->arch.vtsc_last;
            break;

        case WALLCLOCK:
            update_domain_wallclock_time(d);
            memcpy(out, &shared, sizeof(shared));
            break;

        case LOCALTIME:
            out[0] = get_localtime(d);
            out[1] = get_localtime_us(d);
            break;

        case SET_TIMER_OP:
            out[0] = do_set_timer_op(in[17]);
            break;

        case SINGLESHOT:
        {
            struct vcpu_set_singleshot_timer set = { .timeout_abs_ns = in[17] };

            out[0] = vcpuop_singleshot(v, &set);
            break;
        }

        case PERIODIC:
            vcpu_periodic_timer_work_locked(v);
            out[0] = v->periodic_last_event;
            break;

        case WATCHDOG:
            out[0] = domain_watchdog(d, in[16], in[17]);
            out[1] = d->watchdog_inuse_map;
            break;
        }

        if ( in[0] == RUNSTATE_AREA || in[0] == RUNSTATE )
        {
            struct vcpu_runstate_info area = {};
            struct compat_vcpu_runstate_info compat = {};

            raw_bytes = 0;
            if ( in[0] == RUNSTATE )
                out[6] = vcpuop_runstate(v, &area);
            else
            {
                if ( flags & SECONDARY )
                    ;
                else if ( flags & PV32 )
                    v->runstate_guest.compat.p = &compat;
                else
                    v->runstate_guest.native.p = &area;
                out[6] = update_runstate_area(v);
                if ( flags & PV32 )
                {
                    area.state = compat.state;
                    area.state_entry_time = compat.state_entry_time;
                    memcpy(area.time, compat.time, sizeof(area.time));
                }
            }
            out[0] = area.state;
            out[1] = area.state_entry_time;
            memcpy(out + 2, area.time, sizeof(area.time));
            out[7] = raw_bytes;
        }

        if ( in[0] >= SET_TIMER_OP && in[0] <= WATCHDOG )
        {
            const struct timer *timers[] = {
                &v->singleshot_timer, &v->periodic_timer,
                &d->watchdog_timer[0], &d->watchdog_timer[1],
            };
            unsigned int i;

            for ( i = 0; i < 4; i++ )
            {
                out[2 + 2 * i] = timers[i]->asked;
                out[3 + 2 * i] = timers[i]->expires;
            }
        }

        fwrite(out, sizeof(out), 1, stdout);
    }

    return 0;
}
