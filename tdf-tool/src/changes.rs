// SPDX-License-Identifier: MIT OR Apache-2.0
//! Changing a domain's factor at random while its probe watches, and holding Xen to the sum.
//!
//! After each change Xen tells the new segment: where it began, in real and in virtual time. With
//! the one before it that says everything. The new one must begin on the old one, to the
//! nanosecond, and all of them together must add up: `V_end − V_start = Σ ΔR_i/T_i`, but for the
//! part of a nanosecond that each end of a segment is rounded down by.

use std::time::Duration;

use tdf_abi::Tdf;

use crate::probe::split_mix;
use crate::report::Path;
use crate::scenario::Changes;
use crate::xen::Dilation;

/// Binary places of the exact sum: 2⁻³² ns, of which a million terms lose less than a thousandth.
const PLACES: u32 = 32;

/// The changes of one domain.
pub struct Changer {
    changes: Changes,
    random: u64,
    /// Changes made.
    done: u32,
    /// When the next one is due.
    due: Option<Duration>,
    /// The domain at the last change, and before the first.
    last: Option<Dilation>,
    first: Option<Dilation>,
    /// Σ ΔR_i/T_i, in 2^-[`PLACES`] ns.
    sum: i128,
    /// The largest distances found, ns.
    off_segment: i128,
    break_ns: i128,
    wall_drift: i128,
    faults: Vec<String>,
}

impl Changer {
    /// The changes that `changes` asks for; `seed` and the domain's name give their moments.
    pub fn new(changes: &Changes, seed: u64, name: &str) -> Self {
        let mut random = seed;
        for byte in name.bytes() {
            random = random.wrapping_add(byte.into());
            random = split_mix(&mut random);
        }
        Self {
            changes: changes.clone(),
            random,
            done: 0,
            due: None,
            last: None,
            first: None,
            sum: 0,
            off_segment: 0,
            break_ns: 0,
            wall_drift: 0,
            faults: Vec::new(),
        }
    }

    /// The probe watches from now on; `dilation` is how the domain is before the first change.
    pub fn begin(&mut self, now: Duration, dilation: &Dilation) {
        self.first = Some(*dilation);
        self.last = Some(*dilation);
        self.plan(now);
    }

    /// Whether [`Self::begin`] was called.
    pub const fn begun(&self) -> bool {
        self.first.is_some()
    }

    /// When the next change is due; `None` before the beginning and when all are made.
    pub const fn next(&self) -> Option<Duration> {
        self.due
    }

    /// Whether all changes are made.
    pub const fn complete(&self) -> bool {
        self.done >= self.changes.count
    }

    /// The factor that lets the rest of the probe's span pass soonest.
    pub fn last_factor(&self) -> Tdf {
        self.changes.fastest()
    }

    fn plan(&mut self, now: Duration) {
        // From a half to one and a half times the mean.
        let mean = self.changes.every.ns().unsigned_abs();
        let part = u128::from(split_mix(&mut self.random) >> 32) * u128::from(mean);
        let gap = mean / 2 + (part >> 32) as u64;
        self.due = (!self.complete()).then(|| now + Duration::from_nanos(gap));
    }

    /// The factor of the next change: any but the present one.
    pub fn pick(&mut self) -> Tdf {
        let present = self.last.map(|last| last.tdf);
        let others: Vec<Tdf> =
            self.changes.factors.iter().copied().filter(|tdf| Some(*tdf) != present).collect();
        let at = split_mix(&mut self.random) % others.len().max(1) as u64;
        others.get(at as usize).copied().unwrap_or(Tdf::ONE)
    }

    /// Takes what Xen says after a change to `tdf`, which was made at `now`.
    pub fn add(&mut self, tdf: Tdf, dilation: &Dilation, now: Duration) {
        self.done += 1;
        self.step(tdf, dilation);
        self.plan(now);
    }

    /// Takes what Xen says at the very end, when nothing has changed since the last change.
    pub fn end(&mut self, dilation: &Dilation) {
        if let Some(last) = self.last {
            self.step(last.tdf, dilation);
        }
    }

    /// Takes what Xen says after a change to `tdf` that is not one of the planned ones.
    pub fn step(&mut self, tdf: Tdf, new: &Dilation) {
        let (Some(first), Some(old)) = (self.first, self.last.replace(*new)) else { return };
        let wide = |now: i64, then: i64| i128::from(now) - i128::from(then);
        if new.tdf != tdf {
            self.fault(format!("xen: TDF {tdf} was set, but Xen reports {}", new.tdf));
        }
        let changed = (new.real0_ns, new.virt0_ns) != (old.real0_ns, old.virt0_ns);
        if changed && (new.real0_ns < old.real_ns || new.real0_ns > new.real_ns) {
            self.fault("xen: a segment begins at a moment that is not that of its change".into());
        }
        // The end of what ran at the old factor: the change, or now.
        let (end, virt) = match changed {
            true => (new.real0_ns, new.virt0_ns),
            false => (new.real_ns, new.virt_ns),
        };
        let ran = |from: i64, to: i64, tdf: Tdf| {
            (wide(to, from) << PLACES) * i128::from(tdf.den()) / i128::from(tdf.num())
        };
        self.sum += ran(old.real_ns, end, old.tdf);
        if changed {
            self.sum += ran(new.real0_ns, new.real_ns, new.tdf);
        }
        let expected = match old.active {
            true => old.tdf.to_virtual(wide(end, old.real0_ns)) + i128::from(old.virt0_ns),
            false => end.into(),
        };
        worse(&mut self.break_ns, i128::from(virt) - expected);
        let own = new.tdf.to_virtual(wide(new.real_ns, new.real0_ns));
        if new.active {
            worse(&mut self.off_segment, wide(new.virt_ns, new.virt0_ns) - own);
        }
        if first.active {
            let wall = wide(new.wall_ns, first.wall_ns) - wide(new.virt_ns, first.virt_ns);
            worse(&mut self.wall_drift, wall);
        }
    }

    fn fault(&mut self, fault: String) {
        if self.faults.is_empty() {
            self.faults.push(fault);
        }
    }

    /// What Xen's own figures show, and a sentence for each fault.
    pub fn finish(mut self) -> (Vec<Path>, Vec<String>) {
        let (Some(first), Some(last)) = (self.first, self.last) else {
            return (Vec::new(), vec!["the probe never began to watch".to_owned()]);
        };
        let narrow = |ns: i128| i64::try_from(ns).unwrap_or(i64::MAX);
        let ends = i64::from(self.done) + 2;
        let elapsed = i128::from(last.virt_ns) - i128::from(first.virt_ns);
        let off = elapsed - (self.sum >> PLACES);
        let row = |probe, lo, value, hi| Path::new("CHANGES", probe, lo, value, hi);
        let count = self.changes.count.into();
        let rows = vec![
            row("xen:changes", count, self.done.into(), count),
            row("xen:break_at_change", 0, narrow(self.break_ns), 0),
            row("xen:off_own_segment", 0, narrow(self.off_segment), 0),
            // The first sample was rounded down, too: without it virtual time would have begun later.
            row("xen:elapsed_minus_sum", -ends, narrow(off), 1),
            row("xen:wall_minus_virtual", 0, narrow(self.wall_drift), 0),
        ];
        self.faults.extend(rows.iter().filter_map(Path::complaint));
        (rows, self.faults)
    }
}

fn worse(worst: &mut i128, off: i128) {
    if off.abs() > worst.abs() {
        *worst = off;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::Span;
    use proptest::prelude::*;

    fn tdf(text: &str) -> Tdf {
        text.parse().unwrap()
    }

    fn changes(count: u32) -> Changes {
        let factors = ["1/1000", "1/2", "1", "7/3", "10", "1000"].map(tdf).to_vec();
        let every = Span::parse("2 ms").unwrap();
        Changes { count, factors, every, within: every }
    }

    /// A domain in a right Xen, but for what a test does to it.
    #[derive(Clone, Copy)]
    struct Domain(Dilation);

    impl Domain {
        fn new() -> Self {
            Self(Dilation {
                tdf: tdf("10"),
                active: true,
                reveal: true,
                real0_ns: 1_000,
                virt0_ns: 700,
                real_ns: 1_000,
                virt_ns: 700,
                wall_ns: 5_700,
            })
        }

        fn pass(&mut self, ns: i64) {
            let d = &mut self.0;
            d.real_ns += ns;
            d.virt_ns = d.virt0_ns + d.tdf.to_virtual((d.real_ns - d.real0_ns).into()) as i64;
            d.wall_ns = d.virt_ns + 5_000;
        }

        fn set(&mut self, tdf: Tdf) {
            let d = &mut self.0;
            (d.real0_ns, d.virt0_ns, d.tdf) = (d.real_ns, d.virt_ns, tdf);
        }
    }

    /// Makes all changes, of which the tenth is spoilt.
    fn tried(count: u32, spoil: impl Fn(&mut Domain)) -> (Vec<Path>, Vec<String>) {
        let mut domain = Domain::new();
        let mut changer = Changer::new(&changes(count), 3, "a");
        domain.pass(777);
        changer.begin(Duration::ZERO, &domain.0);
        let mut last = Duration::ZERO;
        while let Some(due) = changer.next() {
            let gap = due - last;
            assert!((1_000_000..=3_000_000).contains(&gap.as_nanos()), "{gap:?}");
            last = due;
            domain.pass(gap.as_nanos() as i64);
            let tdf = changer.pick();
            assert_ne!(tdf, domain.0.tdf, "a change that changes nothing");
            domain.set(tdf);
            domain.pass(12_345);
            if changer.done == 10 {
                spoil(&mut domain);
            }
            changer.add(tdf, &domain.0, due);
        }
        changer.finish()
    }

    #[test]
    fn a_right_hypervisor_adds_up_over_thousands_of_changes() {
        let (rows, faults) = tried(5_000, |_| {});
        assert!(faults.is_empty(), "{faults:?}");
        let value = |probe: &str| rows.iter().find(|row| row.probe == probe).unwrap().value;
        assert_eq!(value("xen:changes"), 5_000);
        let off = value("xen:elapsed_minus_sum");
        assert!((-5_002..-1_000).contains(&off), "each change is rounded down: {off}");
    }

    #[test]
    fn whatever_is_wrong_at_one_change_is_seen() {
        let fails = |says: &str, spoil: &dyn Fn(&mut Domain)| {
            let faults = tried(100, spoil).1.join("\n");
            assert!(faults.contains(says), "{says}: {faults}");
        };
        fails("xen:break_at_change: 1 is not", &|d| {
            d.0.virt0_ns += 1;
            d.pass(0);
        });
        fails("xen:break_at_change: -1 is not", &|d| {
            d.0.virt0_ns -= 1;
            d.pass(0);
        });
        fails("xen:elapsed_minus_sum", &|d| {
            d.0.virt0_ns += 1_000;
            d.pass(0);
        });
        fails("xen:off_own_segment: 2 is not", &|d| d.0.virt_ns += 2);
        fails("xen:wall_minus_virtual: -3 is not", &|d| d.0.wall_ns -= 3);
        fails("not that of its change", &|d| d.0.real0_ns += 1_000_000);
        fails("but Xen reports 3", &|d| d.0.tdf = tdf("3"));
    }

    #[test]
    fn changes_that_were_not_made_are_a_failure() {
        let mut changer = Changer::new(&changes(3), 1, "a");
        assert!(changer.next().is_none() && !changer.begun());
        changer.begin(Duration::ZERO, &Domain::new().0);
        let (_, faults) = changer.finish();
        assert_eq!(faults, ["CHANGES: xen:changes: 0 is not between 3 and 3"]);
        assert_eq!(Changer::new(&changes(3), 1, "a").finish().1.len(), 1);
    }

    #[test]
    fn the_seed_and_the_name_give_the_moments() {
        let first = |seed, name| {
            let mut changer = Changer::new(&changes(3), seed, name);
            changer.begin(Duration::ZERO, &Domain::new().0);
            changer.next()
        };
        assert_eq!(first(1, "a"), first(1, "a"));
        assert_ne!(first(1, "a"), first(2, "a"));
        assert_ne!(first(1, "a"), first(1, "b"));
    }

    proptest! {
        #[test]
        fn any_right_history_passes(steps in prop::collection::vec((1i64..1 << 40, 0i64..1 << 20), 1..50)) {
            let mut domain = Domain::new();
            let mut changer = Changer::new(&changes(steps.len() as u32), 9, "a");
            changer.begin(Duration::ZERO, &domain.0);
            for (before, after) in &steps {
                domain.pass(*before);
                let tdf = changer.pick();
                domain.set(tdf);
                domain.pass(*after);
                changer.add(tdf, &domain.0, Duration::ZERO);
            }
            prop_assert_eq!(changer.finish().1, Vec::<String>::new());
        }
    }
}
