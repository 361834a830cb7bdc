// SPDX-License-Identifier: MIT OR Apache-2.0
//! The time paths of a patched Xen against those of a stock one.
//!
//! The functions that the queue changes are cut out of two source trees and run side by side in
//! user space. A domain that was never dilated must get what stock gives it, byte for byte. And a
//! dilated domain must get what stock would give it if Xen's own clock showed V instead of R, with
//! each timer armed for the R of what stock arms it for: one relation that holds for every path.
//!
//! Needs the roots of both trees (the folders that contain `xen/`) in `TDF_XEN_STOCK` and
//! `TDF_XEN_PATCHED`.
#![allow(clippy::unwrap_used, reason = "a test")]

mod common;

use std::env;
use std::path::{Path, PathBuf};

use common::{Numbers, Program, folder, put, read};

const IN: usize = 32;
const OUT: usize = 12;
type Paths = Program<IN, OUT>;

/// What `c/paths.c` is asked to run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum TimePath {
    Record,
    Rdtsc,
    Wallclock,
    Localtime,
    SetTimerOp,
    Singleshot,
    Periodic,
    Watchdog,
    RunstateArea,
    Runstate,
}
use TimePath::*;

const ALL: [TimePath; 10] = [
    Record,
    Rdtsc,
    Wallclock,
    Localtime,
    SetTimerOp,
    Singleshot,
    Periodic,
    Watchdog,
    RunstateArea,
    Runstate,
];

// Positions in a record of `c/paths.c`.
const FLAGS: usize = 1;
const NOW: usize = 2;
const LOCAL_STIME: usize = 4;
const VTSC_OFFSET: usize = 9;
const VTSC_LAST: usize = 10;
const PERIOD: usize = 16;
/// Time in each runstate, and what it was in R and in V when the segment started.
const RUNSTATE_TIMES: [usize; 4] = [9, 11, 12, 13];
const RUNSTATE_REAL: usize = 24;
const RUNSTATE_VIRT: usize = 28;
const VTSC: i64 = 1;
const HVM: i64 = 2;
const TSC_SOURCE: i64 = 8;
/// For runstates: no area is registered.
const SECONDARY: i64 = 32;
const DILATED: i64 = 512;

/// `XEN_PVCLOCK_TSC_STABLE_BIT`, and where the flags are in the last word of the time record.
const STABLE: i64 = 1 << 40;

/// The definition, prototypes left aside, that follows `head` and ends with its matching brace.
fn cut<'a>(source: &'a str, head: &str) -> &'a str {
    let mut from = 0;
    while let Some(found) = source[from..].find(head) {
        let at = from + found;
        let start = source[..at].rfind('\n').map_or(0, |newline| newline + 1);
        let rest = &source[start..];
        let open = rest.find('{').expect("a definition has a brace");
        let indented = head.ends_with('(') && rest.starts_with([' ', '\t', '*', '#']);
        if !indented && !rest[..open].contains(';') {
            let mut depth = 0;
            for (i, byte) in rest.bytes().enumerate().skip(open) {
                match byte {
                    b'{' => depth += 1,
                    b'}' => depth -= 1,
                    _ => continue,
                }
                if depth == 0 {
                    return &rest[..=i];
                }
            }
        }
        from = at + head.len();
    }
    panic!("the tree has no definition of {head}");
}

fn build(tree: &Path, name: &str, patched: bool) -> Paths {
    let folder = folder(name);
    let xen = tree.join("xen");
    let source = |path: &str| read(&xen.join(path));
    let (arch_time, time) = (source("arch/x86/time.c"), source("common/time.c"));
    let core = source("common/sched/core.c");

    let mut code = String::new();
    let mut take = |source: &str, functions: &[&str]| {
        for function in functions {
            code.push_str(cut(source, &format!("{function}(")));
            code.push_str("\n\n");
        }
    };
    if patched {
        take(
            &source("common/tdf.c"),
            &[
                "tdf_active_segment",
                "tdf_active_virt",
                "tdf_active_real",
                "tdf_active_singleshot",
                "tdf_active_poll",
                "tdf_active_watchdog",
                "tdf_active_period",
                "tdf_wallclock_base",
                "runstate_virt",
                "tdf_active_runstate",
            ],
        );
        take(&time, &["wallclock_base"]);
        for name in ["xen/tdf.h", "xen/tdf-inline.h", "xen/tdf-math.h", "public/tdf.h"] {
            put(&folder, name, &source(&format!("include/{name}")));
        }
        put(&folder, "tdf-math.c", &source("common/tdf-math.c"));
    } else {
        put(&folder, "tdf-math.c", "");
    }
    take(&arch_time, &["scale_delta", "gtime_to_gtsc"]);
    if patched {
        take(&arch_time, &["dilate_time_record"]);
    }
    // From 4.18 on the record is put together in a function of its own.
    if arch_time.contains("collect_time_info(") {
        take(&arch_time, &["collect_time_info"]);
    }
    take(&arch_time, &["__update_vcpu_system_time"]);
    take(&arch_time, &["pv_soft_rdtsc"]);
    take(&time, &["update_domain_wallclock_time", "get_localtime", "get_localtime_us"]);
    take(&core, &["do_set_timer_op", "vcpu_periodic_timer_work_locked", "domain_watchdog"]);
    // From 4.18 on the area is common code.
    match source("common/domain.c") {
        common if common.contains("bool update_runstate_area(") => {
            take(&common, &["update_runstate_area"]);
        }
        _ => take(&source("arch/x86/domain.c"), &["update_runstate_area"]),
    }
    put(&folder, "extracted.h", &code);

    let public = source("include/public/xen.h");
    let stable = public.lines().find(|line| line.contains("define XEN_PVCLOCK_TSC_STABLE_BIT"));
    let record = cut(&public, "struct vcpu_time_info {");
    let vcpu = source("include/public/vcpu.h");
    let runstate = cut(&vcpu, "struct vcpu_runstate_info {");
    let types = format!("{record};\n{}\n{runstate};\n", stable.unwrap());
    put(&folder, "extracted-types.h", &types);
    let domain = source("common/domain.c");
    let singleshot = cut(&domain, "case VCPUOP_set_singleshot_timer:");
    let block = &singleshot[singleshot.find('{').unwrap()..];
    put(&folder, "extracted-singleshot.h", &format!("{block}\n"));
    let runstate = cut(&domain, "case VCPUOP_get_runstate_info:");
    let block = &runstate[runstate.find('{').unwrap()..];
    put(&folder, "extracted-runstate.h", &format!("{block}\n"));

    put(&folder, "xen/types.h", "#include <stdbool.h>\n#include <stdint.h>\n");
    put(&folder, "xen/errno.h", "#define ENOSYS 38\n");
    put(&folder, "xen/time.h", include_str!("c/time.h"));
    put(&folder, "xen.h", include_str!("c/xen.h"));
    put(&folder, "paths.c", include_str!("c/paths.c"));
    let mut options = vec![
        "-fno-sanitize=undefined",
        "-fwrapv",
        "-Wno-unused-variable",
        "-Wno-address-of-packed-member",
    ];
    if patched {
        options.push("-DPATCHED");
    }
    Paths::build(&folder, name, &options, &["paths.c", "tdf-math.c"])
}

/// Both trees, or a word why there is nothing to compare.
fn trees() -> Option<(PathBuf, PathBuf)> {
    let tree = |name| env::var_os(name).map(PathBuf::from);
    let found = tree("TDF_XEN_STOCK").zip(tree("TDF_XEN_PATCHED"));
    if found.is_none() {
        println!("SKIP: TDF_XEN_STOCK and TDF_XEN_PATCHED do not name two Xen source trees");
    }
    found
}

#[derive(Clone, Copy)]
struct Segment {
    real0: i64,
    virt0: i64,
    num: i64,
    den: i64,
}

impl Segment {
    fn virt(self, real: i64) -> i64 {
        let delta = i128::from(real) - i128::from(self.real0);
        let virt = self.virt0 as i128 + (delta * self.den as i128).div_euclid(self.num.into());
        virt.clamp(i64::MIN.into(), i64::MAX.into()) as i64
    }

    fn real(self, virt: i64) -> i64 {
        let delta = i128::from(virt) - i128::from(self.virt0);
        let real = self.real0 as i128 - (-delta * self.num as i128).div_euclid(self.den.into());
        real.clamp(i64::MIN.into(), i64::MAX.into()) as i64
    }
}

/// What a host, a domain and its requests may look like.
fn record(numbers: &mut Numbers, path: TimePath, seg: Segment) -> [i64; IN] {
    let mut record = [0; IN];
    record[0] = path as i64;
    record[FLAGS] = numbers.below(512) as i64;
    record[NOW] = numbers.long(52) as i64;
    record[3] = numbers.next() as i64;
    record[LOCAL_STIME] = record[NOW].saturating_sub(numbers.long(32) as i64).max(0);
    for (mul, shift) in [(5, 6), (7, 8)] {
        record[mul] = (0x8000_0000 | numbers.below(1 << 31)) as i64;
        record[shift] = numbers.below(13) as i64 - 8;
    }
    record[9] = numbers.long(50) as i64;
    record[VTSC_LAST] = match numbers.flip() {
        true => record[NOW].saturating_add(numbers.below(2001) as i64 - 1000),
        false => numbers.long(50) as i64,
    };
    record[11] = numbers.long(50) as i64 - (1 << 49);
    record[12] = numbers.long(50) as i64 - (1 << 49);
    record[13] = numbers.next() as i64;
    record[14] = numbers.long(40) as i64 - (1 << 39);
    record[15] = numbers.below(1 << 32) as i64;
    record[18] = numbers.long(34) as i64;
    record[19] = numbers.below(1_000_000_000) as i64;
    if matches!(path, RunstateArea | Runstate) {
        // Entered in this segment, after some time in each state before it.
        record[LOCAL_STIME] = seg.real0 + numbers.long(40) as i64;
        record[NOW] = record[LOCAL_STIME] + numbers.long(40) as i64;
        for (i, time) in RUNSTATE_TIMES.into_iter().enumerate() {
            record[RUNSTATE_REAL + i] = numbers.long(50) as i64;
            record[RUNSTATE_VIRT + i] = numbers.long(50) as i64;
            record[time] = record[RUNSTATE_REAL + i] + numbers.long(40) as i64;
        }
    }
    [record[20], record[21], record[22], record[23]] = [seg.real0, seg.virt0, seg.num, seg.den];
    // Times that the guest asks for are V: around its own now, far from it, or nonsense.
    let virt = seg.virt(record[NOW]);
    record[PERIOD] = 1_000_000 + numbers.long(36) as i64;
    record[17] = match numbers.below(8) {
        0 => 0,
        1 => -1,
        2 => i64::MAX - 15,
        3 => numbers.next() as i64,
        4 => virt,
        5 => virt.wrapping_add(1 << 50).wrapping_add(numbers.below(3) as i64 - 1),
        6 => virt.wrapping_sub(numbers.long(40) as i64),
        _ => virt.wrapping_add(numbers.long(52) as i64),
    };
    match path {
        Periodic => record[17] = virt.wrapping_sub(numbers.long(37) as i64),
        Watchdog => {
            record[PERIOD] = numbers.below(5) as i64;
            record[17] = numbers.below(1 << 32) as i64;
        }
        _ => {}
    }
    record
}

#[test]
fn a_domain_that_was_never_dilated_gets_what_stock_gives_it() {
    let Some((stock, patched)) = trees() else { return };
    let one = Segment { real0: 0, virt0: 0, num: 1, den: 1 };
    let mut numbers = Numbers::new(2);
    let mut records = Vec::new();
    for path in ALL {
        let count = if path == Record { 300_000 } else { 100_000 };
        records.extend((0..count).map(|_| record(&mut numbers, path, one)));
    }
    let stock = build(&stock, "never-stock", false).calls(&records);
    let patched = build(&patched, "never-patched", true).calls(&records);
    for ((stock, patched), record) in stock.iter().zip(&patched).zip(&records) {
        assert_eq!(stock, patched, "{:?}: {record:?}", ALL[record[0] as usize]);
    }
    // The inputs reach the code: hardly two answers are the same.
    for path in ALL {
        let mut answers: Vec<_> = stock
            .iter()
            .zip(&records)
            .filter(|(_, r)| r[0] == path as i64)
            .map(|(a, _)| a)
            .collect();
        answers.sort();
        answers.dedup();
        assert!(answers.len() > 10_000, "{path:?} gives {} answers only", answers.len());
    }
}

#[test]
fn a_dilated_domain_gets_what_stock_would_give_it_in_virtual_time() {
    let Some((stock, patched)) = trees() else { return };
    let mut numbers = Numbers::new(3);
    let mut dilated = Vec::new();
    let mut virtual_ = Vec::new();
    let mut segments = Vec::new();
    // How much later than V stock's clock shows.
    let mut later = Vec::new();
    for path in ALL {
        for _ in 0..50_000 {
            let (num, den) = match numbers.below(3) {
                0 => (2 + numbers.below(999) as i64, 1),
                1 => (1, 2 + numbers.below(999) as i64),
                _ => (1001 + numbers.below(1000) as i64, 1 + numbers.below(1000) as i64),
            };
            let real0 = numbers.long(52) as i64;
            let seg = Segment { real0, virt0: real0 / 2 + numbers.long(50) as i64, num, den };
            let mut record = record(&mut numbers, path, seg);
            record[FLAGS] = record[FLAGS] & !HVM | DILATED;
            if path == Rdtsc && numbers.flip() {
                record[VTSC_LAST] = seg.virt(record[NOW]) + numbers.below(2001) as i64 - 1000;
            }
            dilated.push(record);

            let mut stock = record;
            stock[FLAGS] &= !DILATED;
            // Xen keeps runstates in R, and converts what it shows.
            if !matches!(path, RunstateArea | Runstate) {
                stock[NOW] = seg.virt(record[NOW]);
                stock[LOCAL_STIME] = seg.virt(record[LOCAL_STIME]);
            }
            match path {
                // The bit is withheld: it makes user space rely on what Xen cannot refresh.
                Record => stock[FLAGS] &= !TSC_SOURCE,
                // 1 ms of the host's time is the shortest period.
                Periodic => stock[PERIOD] = record[PERIOD].max(1_000_000 * den / num),
                // Equal readings instead of 1 ns more each, which could outrun the clock.
                Rdtsc if stock[NOW] <= record[VTSC_LAST] => {
                    stock[NOW] = record[VTSC_LAST];
                    stock[VTSC_LAST] = record[VTSC_LAST] - 1;
                }
                _ => {}
            }
            // Stock's clock is never below 0. V before the segment may be, and then what counts is
            // the distance to the emulated TSC's offset.
            let first = match path {
                Record => stock[LOCAL_STIME],
                Rdtsc => stock[NOW].min(stock[VTSC_LAST]),
                _ => 0,
            };
            let shift = 0.max(-first);
            for time in [NOW, LOCAL_STIME, VTSC_OFFSET, VTSC_LAST] {
                stock[time] = stock[time].wrapping_add(shift);
            }
            later.push(shift);
            virtual_.push(stock);
            segments.push(seg);
        }
    }
    let stock = build(&stock, "dilated-stock", false).calls(&virtual_);
    let patched = build(&patched, "dilated-patched", true).calls(&dilated);
    let (mut scaled, mut below_zero) = (0, 0);
    for (i, record) in dilated.iter().enumerate() {
        let (seg, path) = (segments[i], ALL[record[0] as usize]);
        let (mut expected, answer) = (stock[i], patched[i]);
        match path {
            _ if later[i] == 0 => {}
            Rdtsc => expected[1] -= later[i],
            _ => {
                below_zero += record[FLAGS] & VTSC;
                // Each copy of the record that was made.
                for copy in [0, 4, 8] {
                    if expected[copy..copy + 4] != [0; 4] {
                        expected[copy + 2] -= later[i];
                    }
                }
            }
        }
        match path {
            Record if record[FLAGS] & VTSC == 0 => {
                // A native TSC keeps its time stamp and gets another slope.
                let slope = |answer: &[i64; OUT]| {
                    (answer[3] as u32, (answer[3] >> 32) as i8, answer[3] & STABLE)
                };
                let (mul, shift, _) = slope(&expected);
                let (new_mul, new_shift, stable) = slope(&answer);
                assert_eq!(stable, 0, "STABLE bit: {record:?}");
                assert!(new_mul >= 0x8000_0000, "{new_mul:#x}: {record:?}");
                let lost = i32::from(shift) - i32::from(new_shift);
                let exact = (u128::from(mul) * seg.den as u128) << lost.max(0);
                let unit = (seg.num as u128) << (-lost).max(0);
                assert_eq!(exact / unit, new_mul.into(), "slope: {record:?}");
                scaled += 1;
                // Wherever the record went, it is the same one.
                for copy in [3, 7, 11] {
                    if expected[copy] != 0 {
                        expected[copy] = answer[3];
                    }
                }
            }
            SetTimerOp | Singleshot | Periodic | Watchdog => {
                for timer in [2, 4, 6, 8] {
                    if expected[timer] & 2 != 0 {
                        expected[timer + 1] = seg.real(expected[timer + 1]);
                    }
                }
            }
            RunstateArea if record[FLAGS] & SECONDARY != 0 => {}
            RunstateArea | Runstate => {
                expected[1] = seg.virt(expected[1]);
                for (i, time) in expected[2..6].iter_mut().enumerate() {
                    let (real0, virt0) = (record[RUNSTATE_REAL + i], record[RUNSTATE_VIRT + i]);
                    *time = Segment { real0, virt0, ..seg }.virt(*time);
                }
            }
            _ => {}
        }
        assert_eq!(expected, answer, "{path:?}: {record:?}");
    }
    assert!(scaled > 10_000, "only {scaled} records had a native TSC");
    assert!(below_zero > 1_000, "only {below_zero} emulated TSCs began below 0");
}
