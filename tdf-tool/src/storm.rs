// SPDX-License-Identifier: MIT OR Apache-2.0
//! A storm of dilation requests, for the tests: does Xen stand a control domain that asks for anything?
//!
//! Factors, flags, instants, wall clocks, padding, domains and interface versions are drawn at random,
//! mostly from the ends of what their fields hold. What Xen must answer follows from the request and
//! from what the domain was like before; each answer is held against that. After each request that was
//! granted the new segment must begin on the old one, to the nanosecond. Half of the requests are made
//! with the domains paused, because some are refused otherwise.

use std::fmt;
use std::mem::offset_of;

use tdf_abi::{
    SetTdf, TDF_AT_REAL, TDF_REVEAL, TDF_WALL_ANCHOR, Tdf, XEN_DOMCTL_GET_TDF, XEN_DOMCTL_SET_TDF,
};

use crate::probe::split_mix;
use crate::xen::{
    Control, Dilation, DomId, Domctl, Errno, Hypervisor, INTERFACES, Op, State, XenError,
};

/// Requests between two looks at what a domain is like, if none was granted.
const LOOK_EVERY: u64 = 64;
/// Virtual time that certainly does not pass between a look at a domain and the next request, ns: five
/// hours, which are 17 s of real time at the fastest.
const SOON_NS: i128 = 1 << 44;
/// The least id of a domain that does not exist.
const LEAST_NOBODY: u16 = 1 << 14;
/// Bytes of a domctl's operands.
const OPERANDS: usize = 128;

/// What to do.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Requests.
    pub calls: u64,
    /// Of everything random.
    pub seed: u64,
}

/// What came of it.
#[derive(Debug, Default)]
pub struct Outcome {
    /// Requests that were granted, as they had to be.
    pub granted: u64,
    /// Requests that were refused, as they had to be, by error number.
    pub refused: std::collections::BTreeMap<i32, u64>,
    /// What was wrong.
    pub wrong: u64,
    /// The first of it.
    pub first: Option<String>,
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "storm: {} granted", self.granted)?;
        for (errno, count) in &self.refused {
            write!(f, ", {count} refused ({})", Errno(*errno))?;
        }
        write!(f, ", {} wrong", self.wrong)?;
        match &self.first {
            Some(first) => write!(f, "\nstorm: {first}"),
            None => Ok(()),
        }
    }
}

/// A request as it goes to Xen.
#[derive(Clone, Copy, Debug)]
struct Request {
    cmd: u32,
    interface: u32,
    domain: u16,
    set: SetTdf,
}

/// Who a request names.
#[derive(Clone, Copy, Debug)]
enum Target {
    /// The victim of this number.
    Victim(usize),
    /// The control domain itself.
    Own,
    /// Nobody.
    Nobody,
}

/// A domain that is there to be asked for.
struct Victim {
    id: DomId,
    now: Dilation,
    /// The toolstack has paused it.
    paused: bool,
}

/// What Xen must answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Right {
    Granted,
    Refused(i32),
    /// Either, as the moment of the request decides.
    Open,
}

impl Request {
    /// The answer that is due.
    fn right(&self, interface: u32, target: Target, victims: &[Victim]) -> Right {
        if self.interface != interface {
            return Right::Refused(libc::EACCES);
        }
        let set = &self.set;
        let goes_with = |field: u64, flag: u32| field == 0 || set.flags & flag != 0;
        let sane = set.flags & !(TDF_REVEAL | TDF_AT_REAL | TDF_WALL_ANCHOR) == 0
            && set.pad == 0
            && Tdf::new(set.num, set.den).is_ok()
            && goes_with(set.real_ns, TDF_AT_REAL)
            && goes_with(set.wall_ns, TDF_WALL_ANCHOR);
        match target {
            Target::Nobody => Right::Refused(libc::ESRCH),
            _ if self.cmd == XEN_DOMCTL_GET_TDF => Right::Granted,
            _ if !sane => Right::Refused(libc::EINVAL),
            Target::Own => Right::Refused(libc::EPERM),
            Target::Victim(at) => self.right_times(&victims[at]),
        }
    }

    fn right_times(&self, victim: &Victim) -> Right {
        let (set, now) = (&self.set, &victim.now);
        let mut right = Right::Granted;
        let mut virt = None;
        if set.flags & TDF_AT_REAL != 0 {
            match i64::try_from(set.real_ns) {
                Ok(real) if victim.paused && real >= now.real0_ns => {
                    // What was now a moment ago is past.
                    if real > now.real_ns {
                        right = Right::Open;
                    }
                    virt = Some(virtual_at(now, real));
                }
                _ => return Right::Refused(libc::EINVAL),
            }
        }
        if set.flags & TDF_WALL_ANCHOR != 0 {
            // It must be after 1970 when virtual time was 0.
            let Ok(wall) = i64::try_from(set.wall_ns) else {
                return Right::Refused(libc::EINVAL);
            };
            match virt {
                Some(virt) if i128::from(wall) < virt => return Right::Refused(libc::EINVAL),
                Some(_) => {}
                None if wall < now.virt_ns => return Right::Refused(libc::EINVAL),
                None if i128::from(wall) < i128::from(now.virt_ns) + SOON_NS => {
                    right = Right::Open;
                }
                None => {}
            }
        }
        right
    }
}

/// Virtual time at `real_ns`, by the segment in force.
fn virtual_at(now: &Dilation, real_ns: i64) -> i128 {
    if !now.active {
        return real_ns.into();
    }
    let since = i128::from(real_ns) - i128::from(now.real0_ns);
    i128::from(now.virt0_ns) + now.tdf.to_virtual(since)
}

/// What is wrong with a domain that was like `old` and is like `new` after `granted`, if that was.
fn fault(old: &Dilation, new: &Dilation, granted: Option<&SetTdf>) -> Option<String> {
    let tdf = granted.and_then(|set| Tdf::new(set.num, set.den).ok()).unwrap_or(old.tdf);
    let reveal = granted.map_or(old.reveal, |set| set.flags & TDF_REVEAL != 0);
    if (new.tdf, new.reveal) != (tdf, reveal) {
        return Some(format!("TDF {tdf} (reveal: {reveal}) is due, and it is {new:?}"));
    }
    if tdf == old.tdf && (old.real0_ns, old.virt0_ns) != (new.real0_ns, new.virt0_ns) {
        return Some(format!("nothing changes, but {old:?} became {new:?}"));
    }
    if tdf != old.tdf && i128::from(new.virt0_ns) != virtual_at(old, new.real0_ns) {
        return Some(format!("virtual time jumps from {old:?} to {new:?}"));
    }
    let at_real = granted.filter(|set| set.flags & TDF_AT_REAL != 0);
    match at_real {
        Some(set) if tdf != old.tdf && set.real_ns != new.real0_ns.unsigned_abs() => {
            return Some(format!("the change to {new:?} was to be at {}", set.real_ns));
        }
        None if tdf != old.tdf && !(old.real_ns..=new.real_ns).contains(&new.real0_ns) => {
            return Some(format!("the change from {old:?} to {new:?} was to be at once"));
        }
        _ => {}
    }
    let anchored = granted.filter(|set| set.flags & TDF_WALL_ANCHOR != 0);
    let base = |dilation: &Dilation| i128::from(dilation.wall_ns) - i128::from(dilation.virt_ns);
    match (anchored, at_real) {
        (Some(wall), Some(at)) => {
            let at = i64::try_from(at.real_ns).map_or(0, |real| virtual_at(old, real));
            // Far in the future the sum of base and time goes beyond 64 bits; the base is right then.
            let due = i128::from(wall.wall_ns) - at;
            ((base(new) - due) as u64 != 0)
                .then(|| format!("the wall clock's base is not {due} in {new:?}"))
        }
        (None, _) if old.active && (base(new) - base(old)) as u64 != 0 => {
            Some(format!("the wall clock moves between {old:?} and {new:?}"))
        }
        _ => None,
    }
}

struct Storm<'c, M> {
    control: &'c mut Control<M>,
    interface: u32,
    random: u64,
    victims: Vec<Victim>,
    /// Ids that are taken, by victims or others.
    taken: Vec<DomId>,
    outcome: Outcome,
}

impl<M: Hypervisor> Storm<'_, M> {
    fn below(&mut self, below: u64) -> u64 {
        split_mix(&mut self.random) % below
    }

    fn pick<T: Copy, const N: usize>(&mut self, of: [T; N]) -> T {
        of[self.below(N as u64) as usize]
    }

    /// Any 64 bits, but those more often at which something may break.
    fn extreme(&mut self, near: &[i64]) -> u64 {
        let bit = 1u64 << self.below(64);
        let little = self.below(2_000).wrapping_sub(1_000);
        let any = split_mix(&mut self.random);
        let at = self.below(near.len() as u64) as usize;
        let near = near.get(at).map_or(0, |near| near.cast_unsigned());
        match self.below(8) {
            0 => self.pick([0, 1, u64::MAX, 1 << 63, u64::MAX >> 1, u64::MAX >> 2]),
            1 => bit,
            2 => bit.wrapping_add(little),
            3 => near.wrapping_add(little),
            4 => near.wrapping_sub(any >> 40),
            5 => near,
            6 => any >> (any & 63),
            _ => any,
        }
    }

    fn target(&mut self) -> (Target, u16) {
        // Toolstacks hand ids out from below: what is made meanwhile has none of these.
        let any = split_mix(&mut self.random) as u16 | LEAST_NOBODY;
        let special = DomId::FIRST_RESERVED + self.below(16) as u16;
        match self.below(8) {
            0 => (Target::Own, 0),
            1 => {
                let id = self.pick([any, any, special]);
                match self.taken.contains(&DomId(id)) {
                    true => (Target::Own, 0),
                    false => (Target::Nobody, id),
                }
            }
            _ => {
                let at = self.below(self.victims.len() as u64) as usize;
                (Target::Victim(at), self.victims[at].id.0)
            }
        }
    }

    fn request(&mut self) -> (Target, Request) {
        let (target, domain) = self.target();
        let cmd = if self.below(8) == 0 { XEN_DOMCTL_GET_TDF } else { XEN_DOMCTL_SET_TDF };
        let strange = self.below(1 << 32) as u32;
        let interface = match self.below(16) {
            0 => self.pick([0, 0x14, 0x19, u32::MAX, strange]),
            _ => self.interface,
        };
        let (now, near) = match target {
            Target::Victim(at) => {
                let now = self.victims[at].now;
                (Some(now), vec![now.real0_ns, now.real_ns, now.virt_ns, now.wall_ns])
            }
            _ => (None, vec![0]),
        };
        let factor = |value: u64| value as u32;
        let (num, den) = match self.below(4) {
            0 => (factor(self.extreme(&near)), factor(self.extreme(&near))),
            1 => self.pick([(1, 1000), (1000, 1), (1001, 1), (1, 1001), (0, 1), (1, 0), (0, 0)]),
            2 => {
                let den = self.below(1 << 22) as u32;
                (den.saturating_mul(1000).saturating_add(self.below(2) as u32), den)
            }
            _ => (1 + self.below(1000) as u32, 1 + self.below(1000) as u32),
        };
        let flags = match self.below(8) {
            0 => self.extreme(&near) as u32,
            _ => self.below(8) as u32,
        };
        let pad = if self.below(16) == 0 { self.extreme(&near) as u32 } else { 0 };
        let mut time = |flag: u32| match flags & flag != 0 || self.below(32) == 0 {
            true => self.extreme(&near),
            false => 0,
        };
        let (mut real_ns, wall_ns) = (time(TDF_AT_REAL), time(TDF_WALL_ANCHOR));
        // An instant that may be granted.
        if let Some(now) = now
            && flags & TDF_AT_REAL != 0
            && self.below(2) == 0
        {
            let since = now.real_ns.abs_diff(now.real0_ns) + 1;
            real_ns = now.real0_ns.cast_unsigned() + self.below(since);
        }
        let set = SetTdf { num, den, flags, pad, real_ns, wall_ns };
        (target, Request { cmd, interface, domain, set })
    }

    /// Makes a request; what Xen answers.
    fn ask(&mut self, request: &Request) -> Result<(), i32> {
        let mut operands = [0; OPERANDS];
        if request.cmd == XEN_DOMCTL_GET_TDF {
            // Xen is to look at none of it.
            operands.fill_with(|| split_mix(&mut self.random) as u8);
        }
        let mut put =
            |at: usize, bytes: &[u8]| operands[at..at + bytes.len()].copy_from_slice(bytes);
        let set = &request.set;
        put(offset_of!(SetTdf, num), &set.num.to_ne_bytes());
        put(offset_of!(SetTdf, den), &set.den.to_ne_bytes());
        put(offset_of!(SetTdf, flags), &set.flags.to_ne_bytes());
        put(offset_of!(SetTdf, pad), &set.pad.to_ne_bytes());
        put(offset_of!(SetTdf, real_ns), &set.real_ns.to_ne_bytes());
        put(offset_of!(SetTdf, wall_ns), &set.wall_ns.to_ne_bytes());
        let mut domctl =
            Domctl::raw(request.cmd, request.interface, DomId(request.domain), &operands);
        let result = self.control.machine.call(Op::Domctl(&mut domctl));
        result.map(drop).map_err(|errno| errno.0)
    }

    fn wrong(&mut self, what: impl FnOnce() -> String) {
        self.outcome.wrong += 1;
        if self.outcome.first.is_none() {
            self.outcome.first = Some(what());
        }
    }

    fn one(&mut self, nth: u64) -> Result<(), XenError> {
        let (target, request) = self.request();
        let right = request.right(self.interface, target, &self.victims);
        let answer = self.ask(&request);
        match (answer, right) {
            (Ok(()), Right::Granted | Right::Open) => self.outcome.granted += 1,
            (Err(errno), Right::Refused(right)) if errno == right => {
                *self.outcome.refused.entry(errno).or_default() += 1;
            }
            (Err(libc::EINVAL), Right::Open) => {
                *self.outcome.refused.entry(libc::EINVAL).or_default() += 1;
            }
            _ => self.wrong(|| format!("{answer:?} to {request:?} of {target:?}, not {right:?}")),
        }
        let set = (answer.is_ok() && request.cmd == XEN_DOMCTL_SET_TDF).then_some(&request.set);
        match target {
            Target::Victim(at) if set.is_some() || nth.is_multiple_of(LOOK_EVERY) => {
                let victim = &self.victims[at];
                let new = self.control.get_tdf(victim.id)?;
                let fault = fault(&victim.now, &new, set);
                self.victims[at].now = new;
                if let Some(fault) = fault {
                    self.wrong(|| format!("after {request:?}: {fault}"));
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn half(&mut self, calls: std::ops::Range<u64>) -> Result<(), XenError> {
        for at in 0..self.victims.len() {
            let Victim { id, now, paused } = &self.victims[at];
            if *paused {
                // From this change on, the segment's start is the earliest instant that may be asked for.
                let other = Tdf::new(now.tdf.num() % 1000 + 1, now.tdf.den().min(1000));
                self.control.set_tdf(*id, other.unwrap_or(Tdf::ONE), false)?;
                self.victims[at].now = self.control.get_tdf(*id)?;
            }
        }
        for nth in calls {
            self.one(nth)?;
        }
        Ok(())
    }
}

impl<M: Hypervisor> Control<M> {
    /// Makes `options.calls` requests, for `victims` and for nobody, but for none of `others`, and gives
    /// the victims back the factors that they had. Their wall clocks are lost.
    ///
    /// # Errors
    /// A victim cannot be paused, or what it is like cannot be read.
    pub fn storm(
        &mut self,
        victims: &[DomId],
        others: &[DomId],
        options: Options,
    ) -> Result<Outcome, XenError> {
        let read = |id: &DomId| {
            let paused = self.state(*id)? == State::Paused;
            Ok(Victim { id: *id, now: self.get_tdf(*id)?, paused })
        };
        let victims = victims.iter().map(read).collect::<Result<Vec<_>, XenError>>()?;
        let before: Vec<_> = victims.iter().map(|victim| (victim.id, victim.now)).collect();
        let interface = self.interface().unwrap_or(*INTERFACES.start());
        let taken = before.iter().map(|(id, _)| *id).chain(others.iter().copied()).collect();
        let mut storm = Storm {
            control: self,
            interface,
            random: options.seed,
            victims,
            taken,
            outcome: Outcome::default(),
        };
        let mut result = storm.half(0..options.calls / 2);
        let mut paused = Vec::new();
        for (id, _) in &before {
            result = result.and_then(|()| storm.control.pause(*id));
            if result.is_ok() {
                paused.push(*id);
            }
        }
        storm.victims.iter_mut().for_each(|victim| victim.paused = true);
        result = result.and_then(|()| storm.half(options.calls / 2..options.calls));
        // Whatever happened, they run on as they were.
        for (id, was) in &before {
            result = result.and(storm.control.set_tdf(*id, was.tdf, was.reveal));
        }
        for id in paused {
            result = result.and(storm.control.unpause(id));
        }
        result.map(|()| storm.outcome)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;
    use tdf_abi::{GetTdf, TDF_ABI_VERSION, TDF_ACTIVE};

    /// What a Xen does wrong.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    enum Fault {
        DilatesItself,
        TakesPadding,
        TakesTheFuture,
        TakesThePast,
        RefusesLargest,
        Jumps,
        ForgetsReveal,
        WallFollows,
    }

    #[derive(Clone, Copy)]
    struct Domain {
        get: GetTdf,
        base: i64,
        paused: u32,
    }

    /// A Xen of dilation only, which answers as the header says.
    struct Strict {
        now: i64,
        domains: BTreeMap<u16, Domain>,
        fault: Option<Fault>,
    }

    impl Domain {
        fn virt(&self, real: i64) -> i64 {
            let get = &self.get;
            let tdf = Tdf::new(get.num, get.den).unwrap();
            let since = tdf.to_virtual(i128::from(real) - i128::from(get.real0_ns));
            get.virt0_ns.wrapping_add(since as i64)
        }
    }

    impl Strict {
        fn set(&mut self, id: u16, set: &SetTdf) -> Result<(), i32> {
            let fault = self.fault;
            let has = |which| fault == Some(which);
            let tdf = Tdf::new(set.num, set.den).map_err(|_| libc::EINVAL)?;
            let at = set.flags & TDF_AT_REAL != 0;
            let anchor = set.flags & TDF_WALL_ANCHOR != 0;
            if set.flags > 7
                || (set.pad != 0 && !has(Fault::TakesPadding))
                || (set.real_ns != 0 && !at)
                || (set.wall_ns != 0 && !anchor)
                || (has(Fault::RefusesLargest) && (tdf.num(), tdf.den()) == (1000, 1))
            {
                return Err(libc::EINVAL);
            }
            if id == 0 && !has(Fault::DilatesItself) {
                return Err(libc::EPERM);
            }
            let now = self.now;
            let domain = self.domains.get_mut(&id).ok_or(libc::ESRCH)?;
            let mut real = now;
            if at {
                let future = set.real_ns > now as u64 && !has(Fault::TakesTheFuture);
                let past = (set.real_ns as i64) < domain.get.real0_ns && !has(Fault::TakesThePast);
                if domain.paused == 0 || future || past {
                    return Err(libc::EINVAL);
                }
                real = set.real_ns as i64;
            }
            let virt = domain.virt(real);
            if anchor {
                let base = (set.wall_ns as i64).checked_sub(virt).filter(|base| *base >= 0);
                domain.base = base.filter(|_| set.wall_ns < 1 << 63).ok_or(libc::EINVAL)?;
            }
            let get = &mut domain.get;
            if (get.num, get.den) != (tdf.num(), tdf.den()) {
                (get.num, get.den) = (tdf.num(), tdf.den());
                (get.real0_ns, get.virt0_ns) =
                    (real, virt.wrapping_add(i64::from(has(Fault::Jumps))));
                get.flags |= TDF_ACTIVE;
                domain.base = domain.base.wrapping_add(i64::from(has(Fault::WallFollows)));
            }
            if !has(Fault::ForgetsReveal) {
                get.flags = get.flags & TDF_ACTIVE | set.flags & TDF_REVEAL;
            }
            Ok(())
        }

        fn answer(&mut self, domctl: &mut Domctl) -> Result<(), i32> {
            let bytes = domctl.bytes_mut();
            let word = |at: usize| u32::from_ne_bytes(bytes[at..at + 4].try_into().unwrap());
            let long = |at: usize| u64::from_ne_bytes(bytes[at..at + 8].try_into().unwrap());
            let id = word(8) as u16;
            let set = SetTdf {
                num: word(16),
                den: word(20),
                flags: word(24),
                pad: word(28),
                real_ns: long(32),
                wall_ns: long(40),
            };
            if word(4) != 0x17 {
                return Err(libc::EACCES);
            }
            let domain = self.domains.get_mut(&id).ok_or(libc::ESRCH)?;
            match word(0) {
                XEN_DOMCTL_SET_TDF => return self.set(id, &set),
                XEN_DOMCTL_GET_TDF => {
                    let virt = domain.virt(self.now);
                    domctl.answer(&GetTdf {
                        real_now_ns: self.now,
                        virt_now_ns: virt,
                        wall_now_ns: domain.base.wrapping_add(virt),
                        ..domain.get
                    });
                }
                5 => {
                    let paused = if domain.paused > 0 { 1 << 3 } else { 0 };
                    domctl.answer_info(DomId(id), paused, 0);
                }
                3 => domain.paused += 1,
                4 => domain.paused -= 1,
                other => panic!("domctl {other}"),
            }
            Ok(())
        }
    }

    impl Hypervisor for Strict {
        fn call(&mut self, op: Op<'_>) -> Result<u64, Errno> {
            let Op::Domctl(domctl) = op else { panic!("a domctl") };
            self.now += 1_234;
            self.answer(domctl).map(|()| 0).map_err(Errno)
        }
    }

    fn stormed(fault: Option<Fault>) -> (Outcome, Strict) {
        let get = GetTdf {
            version: TDF_ABI_VERSION,
            flags: TDF_ACTIVE,
            num: 10,
            den: 1,
            real0_ns: 5_000_000_000,
            virt0_ns: 4_000_000_000,
            ..GetTdf::default()
        };
        let domain = Domain { get, base: 1 << 60, paused: 0 };
        let own = Domain { get: GetTdf { num: 1, ..get }, ..domain };
        let domains = BTreeMap::from([(0, own), (3, domain), (4, domain), (9, domain)]);
        let mut control = Control::new(Strict { now: 6_000_000_000, domains, fault });
        let options = Options { calls: 20_000, seed: 1 };
        let outcome = control.storm(&[DomId(3), DomId(4)], &[DomId(0), DomId(9)], options).unwrap();
        (outcome, control.machine)
    }

    #[test]
    fn a_xen_that_answers_rightly_stands_it_and_others_feel_nothing() {
        let (outcome, xen) = stormed(None);
        assert_eq!(outcome.wrong, 0, "{outcome}");
        for errno in [libc::EINVAL, libc::EPERM, libc::ESRCH, libc::EACCES] {
            assert!(outcome.refused[&errno] > 100, "{outcome}");
        }
        assert!(outcome.granted > 4_000, "{outcome}");
        assert_eq!((xen.domains[&9].get.real0_ns, xen.domains[&9].base), (5_000_000_000, 1 << 60));
        for id in [3, 4] {
            let Domain { get, paused, .. } = xen.domains[&id];
            assert_eq!((get.num, get.den, paused), (10, 1, 0));
        }
    }

    #[test]
    fn whatever_xen_does_wrong_is_noticed() {
        for fault in [
            Fault::DilatesItself,
            Fault::TakesPadding,
            Fault::TakesTheFuture,
            Fault::TakesThePast,
            Fault::RefusesLargest,
            Fault::Jumps,
            Fault::ForgetsReveal,
            Fault::WallFollows,
        ] {
            let (outcome, _) = stormed(Some(fault));
            assert!(outcome.wrong > 0 && outcome.first.is_some(), "{fault:?}: {outcome}");
        }
    }
}
