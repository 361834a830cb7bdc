// SPDX-License-Identifier: MIT OR Apache-2.0
//! The few hypercalls of `tdf`, typed.
//!
//! The domctl interface is versioned and Xen compares versions for equality, although nothing that
//! is used here differs between 4.17 and 4.22. [`Control`] therefore tries the known versions until
//! one is not refused. [`Hypervisor`] is the seam: `/dev/xen/privcmd` on a host, a fake in tests.

use std::fmt;
use std::mem::{offset_of, size_of};

use tdf_abi::{
    GetTdf, SetTdf, TDF_ABI_VERSION, TDF_ACTIVE, TDF_AT_REAL, TDF_REVEAL, TDF_WALL_ANCHOR, Tdf,
    TdfSample, XEN_DOMCTL_GET_TDF, XEN_DOMCTL_SET_TDF,
};
use tdf_xen::abi::RunstateInfo;

/// Domctl interface versions of Xen 4.17 (0x15) to 4.22 (0x18).
pub const INTERFACES: std::ops::RangeInclusive<u32> = 0x15..=0x18;

const XEN_DOMCTL_PAUSEDOMAIN: u32 = 3;
const XEN_DOMCTL_UNPAUSEDOMAIN: u32 = 4;
const XEN_DOMCTL_GETDOMAININFO: u32 = 5;
/// Bits of `xen_domctl_getdomaininfo.flags`.
const DOMINF_DYING: u32 = 1 << 0;
const DOMINF_SHUTDOWN: u32 = 1 << 2;
const DOMINF_PAUSED: u32 = 1 << 3;
const DOMINF_SHUTDOWN_SHIFT: u32 = 16;
/// Where `xen_domctl_getdomaininfo` has `cpu_time`: behind the ids, the flags and six words.
const DOMINFO_CPU_TIME: usize = 56;

/// Bytes of `struct xen_domctl`: a header of 16 and a union padded to 128.
const DOMCTL_SIZE: usize = 144;
const DOMCTL_INTERFACE: usize = 4;
const DOMCTL_DOMAIN: usize = 8;
const DOMCTL_UNION: usize = 16;

/// A domain's id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DomId(pub u16);

impl DomId {
    /// The first id that is not a domain's (`DOMID_FIRST_RESERVED`).
    pub const FIRST_RESERVED: u16 = 0x7ff0;
}

impl fmt::Display for DomId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The error number of a hypercall, positive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Errno(pub i32);

impl fmt::Display for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        std::io::Error::from_raw_os_error(self.0).fmt(f)
    }
}

/// A `struct xen_domctl`. Only the operations below can be made, none of which holds a pointer.
#[derive(Clone, Debug)]
#[repr(C, align(8))]
pub struct Domctl([u8; DOMCTL_SIZE]);

impl Domctl {
    fn new(cmd: u32, domain: DomId) -> Self {
        let mut domctl = Self([0; DOMCTL_SIZE]);
        domctl.put(0, &cmd.to_ne_bytes());
        domctl.put(DOMCTL_DOMAIN, &domain.0.to_ne_bytes());
        domctl
    }

    fn set_tdf(domain: DomId, set: &Set) -> Self {
        let mut domctl = Self::new(XEN_DOMCTL_SET_TDF, domain);
        domctl.put(DOMCTL_UNION + offset_of!(SetTdf, num), &set.tdf.num().to_ne_bytes());
        domctl.put(DOMCTL_UNION + offset_of!(SetTdf, den), &set.tdf.den().to_ne_bytes());
        domctl.put(DOMCTL_UNION + offset_of!(SetTdf, flags), &set.flags.to_ne_bytes());
        domctl.put(DOMCTL_UNION + offset_of!(SetTdf, real_ns), &set.real_ns.to_ne_bytes());
        domctl.put(DOMCTL_UNION + offset_of!(SetTdf, wall_ns), &set.wall_ns.to_ne_bytes());
        domctl
    }

    /// One of the two operations of dilation with any operands, which Xen may refuse.
    pub(crate) fn raw(cmd: u32, interface: u32, domain: DomId, operands: &[u8]) -> Self {
        assert!(matches!(cmd, XEN_DOMCTL_SET_TDF | XEN_DOMCTL_GET_TDF), "a domctl {cmd:#x}");
        let mut domctl = Self::new(cmd, domain);
        domctl.put(DOMCTL_INTERFACE, &interface.to_ne_bytes());
        domctl.put(DOMCTL_UNION, operands);
        domctl
    }

    fn put(&mut self, at: usize, bytes: &[u8]) {
        self.0[at..at + bytes.len()].copy_from_slice(bytes);
    }

    fn take<const N: usize>(&self, at: usize) -> [u8; N] {
        take(&self.0, at)
    }

    /// The whole structure, for who makes the hypercall.
    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.0
    }
}

/// The argument of `set_tdf`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Set {
    /// The factor.
    pub tdf: Tdf,
    /// `TDF_*`.
    pub flags: u32,
    /// When, with [`TDF_AT_REAL`]; else 0.
    pub real_ns: u64,
    /// What the wall clock shows then, with [`TDF_WALL_ANCHOR`]; else 0.
    pub wall_ns: u64,
}

fn take<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut out = [0; N];
    out.copy_from_slice(&bytes[at..at + N]);
    out
}

/// The hypercalls that exist for `tdf`.
pub enum Op<'a> {
    /// `domctl`, as the control domain.
    Domctl(&'a mut Domctl),
    /// `vcpu_op` `VCPUOP_tdf_sample` on vCPU 0, as any domain that may.
    Sample(&'a mut [u8; size_of::<TdfSample>()]),
    /// `vcpu_op` `VCPUOP_get_runstate_info` on vCPU 0, as any domain.
    Runstate(&'a mut [u8; size_of::<RunstateInfo>()]),
    /// `xen_version` `XENVER_version`: `major << 16 | minor`.
    Version,
    /// `xen_version` `XENVER_extraversion`.
    ExtraVersion(&'a mut [u8; 16]),
}

/// Who carries out hypercalls.
pub trait Hypervisor {
    /// Carries out `op` and returns its non-negative result.
    ///
    /// # Errors
    /// The error number, positive.
    fn call(&mut self, op: Op<'_>) -> Result<u64, Errno>;
}

/// Why Xen did not do what was asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum XenError {
    /// `ENOSYS`: Xen without the patch.
    NoDilation,
    /// `EACCES` for every interface version.
    NoInterface,
    /// `ESRCH`.
    NoDomain(DomId),
    /// `EPERM` of `set_tdf`.
    MayNotDilate(DomId),
    /// `EPERM` of anything else.
    NotControl,
    /// `EINVAL` of `set_tdf`.
    Refused(DomId, Tdf),
    /// `EINVAL` of `set_tdf` at a given instant.
    RefusedAt(DomId, Tdf, i64),
    /// `EBUSY` of `set_tdf`.
    Busy(DomId),
    /// `EOPNOTSUPP` of `set_tdf`.
    Unsupported(DomId),
    /// Xen has the patch, but of another age.
    Abi(u32),
    /// Xen says that the domain's factor is none.
    Nonsense(DomId, u32, u32),
    /// Anything else, with what was tried.
    Other(&'static str, Errno),
}

impl fmt::Display for XenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoDilation => f.write_str(
                "this hypervisor has no time dilation: boot a Xen built by `cargo xtask build-xen` \
                 (hypervisor-patch/README.md says how)",
            ),
            Self::NoInterface => write!(
                f,
                "Xen refuses the domctl interface versions {:#x} to {:#x}: tdf knows Xen 4.17 to \
                 4.22 only, and needs the rights of the control domain",
                INTERFACES.start(),
                INTERFACES.end()
            ),
            Self::NoDomain(id) => write!(f, "there is no domain with the id {id}"),
            Self::MayNotDilate(id) => write!(
                f,
                "Xen does not let domain {id} be dilated: dom0, the control, hardware and xenstore \
                 domains stay at TDF 1, and only the control domain may set another's"
            ),
            Self::NotControl => {
                f.write_str("Xen refused: only the control domain (dom0) may read another's TDF")
            }
            Self::Refused(id, tdf) => {
                write!(f, "Xen does not take TDF {tdf} for domain {id}: out of its range")
            }
            Self::RefusedAt(id, tdf, real_ns) => write!(
                f,
                "Xen does not take TDF {tdf} for domain {id} from the instant {real_ns} ns on: \
                 somebody else unpaused it or changed its TDF meanwhile, or this Xen cannot change \
                 several domains in one instant"
            ),
            Self::Busy(id) => write!(
                f,
                "domain {id} reads its clock without Xen's knowledge (Xen runs with \
                 clocksource=tsc); set the TDF before it runs, with tdf create"
            ),
            Self::Unsupported(id) => write!(
                f,
                "Xen cannot dilate domain {id}: it is of a kind whose clocks the hypervisor's patches \
                 do not cover (hypervisor-patch/README.md names them)"
            ),
            Self::Abi(theirs) => write!(
                f,
                "this tdf speaks version {TDF_ABI_VERSION} of the dilation interface, the running \
                 Xen version {theirs}: build both from the same sources"
            ),
            Self::Nonsense(id, num, den) => {
                write!(f, "Xen reports {num}/{den} as the TDF of domain {id}, which is none")
            }
            Self::Other(what, errno) => write!(f, "{what} failed: {errno}"),
        }
    }
}

impl std::error::Error for XenError {}

/// A domain's dilation, all clocks read in the same instant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dilation {
    /// The factor of the current segment.
    pub tdf: Tdf,
    /// The domain has been dilated at some time.
    pub active: bool,
    /// The domain may read real time.
    pub reveal: bool,
    /// Start of the segment, real time, ns.
    pub real0_ns: i64,
    /// Start of the segment, virtual time, ns.
    pub virt0_ns: i64,
    /// Real time now (Xen's system time), ns.
    pub real_ns: i64,
    /// Virtual time now (the domain's system time), ns.
    pub virt_ns: i64,
    /// The domain's wall clock now, ns since 1970.
    pub wall_ns: i64,
}

impl Dilation {
    /// What the domain's wall clock shows at an instant, if nothing changes until then.
    pub fn wall_at(&self, real_ns: i64) -> i64 {
        let passed = match self.active {
            true => {
                let since =
                    |ns: i64| self.tdf.to_virtual(i128::from(ns) - i128::from(self.real0_ns));
                since(real_ns) - since(self.real_ns)
            }
            false => i128::from(real_ns) - i128::from(self.real_ns),
        };
        self.wall_ns.saturating_add(i64::try_from(passed).unwrap_or(i64::MAX))
    }
}

/// The instant at which a domain's factor changes, and what its wall clock shows then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Instant {
    /// Real time, ns; the domain is paused since before it.
    pub real_ns: i64,
    /// The wall clock, ns since 1970; `None`: as it is.
    pub wall_ns: Option<i64>,
}

/// How a domain is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Alive: running or blocked.
    Alive,
    /// Alive, but paused by the toolstack.
    Paused,
    /// It has shut down for this reason, and is still there.
    Shutdown(ShutdownReason),
    /// There is no such domain (any more).
    Gone,
}

/// Why a domain shut down (`SHUTDOWN_*` of `public/sched.h`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ShutdownReason(pub u8);

impl ShutdownReason {
    /// Nobody petted a watchdog of the domain (`SHUTDOWN_watchdog`).
    pub const WATCHDOG: Self = Self(4);
}

impl fmt::Display for ShutdownReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            0 => f.write_str("powered off"),
            1 => f.write_str("rebooted"),
            2 => f.write_str("suspended"),
            3 => f.write_str("crashed"),
            4 => f.write_str("was stopped by its watchdog"),
            other => write!(f, "shut down (reason {other})"),
        }
    }
}

/// Real and virtual time of the calling domain, in one instant.
///
/// # Errors
/// Xen's error number: `EPERM` without the permission, `ENOSYS` without the patch.
pub fn sample(xen: &mut impl Hypervisor) -> Result<TdfSample, Errno> {
    let mut bytes = [0; size_of::<TdfSample>()];
    xen.call(Op::Sample(&mut bytes))?;
    Ok(TdfSample {
        real_ns: i64::from_ne_bytes(take(&bytes, offset_of!(TdfSample, real_ns))),
        virt_ns: i64::from_ne_bytes(take(&bytes, offset_of!(TdfSample, virt_ns))),
        num: u32::from_ne_bytes(take(&bytes, offset_of!(TdfSample, num))),
        den: u32::from_ne_bytes(take(&bytes, offset_of!(TdfSample, den))),
    })
}

/// What Xen says the calling domain's vCPU 0 has done with its time.
///
/// # Errors
/// Xen's error number.
pub fn runstate(xen: &mut impl Hypervisor) -> Result<RunstateInfo, Errno> {
    let mut bytes = [0; size_of::<RunstateInfo>()];
    xen.call(Op::Runstate(&mut bytes))?;
    let time = |state| offset_of!(RunstateInfo, time_ns) + state * size_of::<u64>();
    Ok(RunstateInfo {
        state: i32::from_ne_bytes(take(&bytes, offset_of!(RunstateInfo, state))),
        state_entry_time_ns: u64::from_ne_bytes(take(
            &bytes,
            offset_of!(RunstateInfo, state_entry_time_ns),
        )),
        time_ns: [0, 1, 2, 3].map(|state| u64::from_ne_bytes(take(&bytes, time(state)))),
    })
}

/// The control interface of one machine.
pub struct Control<M> {
    /// The machine itself, for everything that is no hypercall.
    pub machine: M,
    interface: Option<u32>,
}

impl<M: Hypervisor> Control<M> {
    /// Controls `machine`.
    pub const fn new(machine: M) -> Self {
        Self { machine, interface: None }
    }

    /// The interface version that Xen was found to speak.
    pub(crate) const fn interface(&self) -> Option<u32> {
        self.interface
    }

    fn domctl(&mut self, domctl: &Domctl) -> Result<Domctl, Errno> {
        let candidates = self.interface.map_or(INTERFACES, |known| known..=known);
        for version in candidates {
            let mut attempt = domctl.clone();
            attempt.put(DOMCTL_INTERFACE, &version.to_ne_bytes());
            match self.machine.call(Op::Domctl(&mut attempt)) {
                Err(Errno(libc::EACCES)) => {}
                result => {
                    self.interface = Some(version);
                    return result.map(|_| attempt);
                }
            }
        }
        Err(Errno(libc::EACCES))
    }

    /// The domain's TDF, segment and clocks.
    ///
    /// # Errors
    /// No such domain, no patch, no right.
    pub fn get_tdf(&mut self, id: DomId) -> Result<Dilation, XenError> {
        let got = self.domctl(&Domctl::new(XEN_DOMCTL_GET_TDF, id)).map_err(|e| match e.0 {
            libc::ENOSYS => XenError::NoDilation,
            libc::EACCES => XenError::NoInterface,
            libc::ESRCH => XenError::NoDomain(id),
            libc::EPERM => XenError::NotControl,
            _ => XenError::Other("reading a domain's TDF", e),
        })?;
        let word = |at: usize| u32::from_ne_bytes(got.take(DOMCTL_UNION + at));
        let time = |at: usize| i64::from_ne_bytes(got.take(DOMCTL_UNION + at));
        let version = word(offset_of!(GetTdf, version));
        if version != TDF_ABI_VERSION {
            return Err(XenError::Abi(version));
        }
        let (num, den) = (word(offset_of!(GetTdf, num)), word(offset_of!(GetTdf, den)));
        let flags = word(offset_of!(GetTdf, flags));
        Ok(Dilation {
            tdf: Tdf::new(num, den).map_err(|_| XenError::Nonsense(id, num, den))?,
            active: flags & TDF_ACTIVE != 0,
            reveal: flags & TDF_REVEAL != 0,
            real0_ns: time(offset_of!(GetTdf, real0_ns)),
            virt0_ns: time(offset_of!(GetTdf, virt0_ns)),
            real_ns: time(offset_of!(GetTdf, real_now_ns)),
            virt_ns: time(offset_of!(GetTdf, virt_now_ns)),
            wall_ns: time(offset_of!(GetTdf, wall_now_ns)),
        })
    }

    /// Gives the domain the factor `tdf` now, and the right to read real time or not.
    ///
    /// # Errors
    /// No such domain, no patch, no right, a domain that cannot be dilated.
    pub fn set_tdf(&mut self, id: DomId, tdf: Tdf, reveal: bool) -> Result<(), XenError> {
        let flags = if reveal { TDF_REVEAL } else { 0 };
        let set = Set { tdf, flags, real_ns: 0, wall_ns: 0 };
        self.domctl(&Domctl::set_tdf(id, &set)).map(drop).map_err(|e| refusal(id, tdf, None, e))
    }

    /// As [`Control::set_tdf`], but from a past instant on; the domain has to be paused.
    ///
    /// # Errors
    /// Those, and an instant at which the domain ran.
    pub fn set_tdf_at(
        &mut self,
        id: DomId,
        tdf: Tdf,
        reveal: bool,
        at: Instant,
    ) -> Result<(), XenError> {
        let refused = XenError::RefusedAt(id, tdf, at.real_ns);
        let unsigned = |ns: i64| u64::try_from(ns).map_err(|_| refused.clone());
        let mut flags = TDF_AT_REAL;
        if reveal {
            flags |= TDF_REVEAL;
        }
        let mut wall_ns = 0;
        if let Some(ns) = at.wall_ns {
            flags |= TDF_WALL_ANCHOR;
            wall_ns = unsigned(ns)?;
        }
        let set = Set { tdf, flags, real_ns: unsigned(at.real_ns)?, wall_ns };
        let result = self.domctl(&Domctl::set_tdf(id, &set)).map(drop);
        result.map_err(|e| refusal(id, tdf, Some(at), e))
    }

    /// Pauses the domain, once more if it is paused already; returns when none of it runs.
    ///
    /// # Errors
    /// No such domain, no right.
    pub fn pause(&mut self, id: DomId) -> Result<(), XenError> {
        self.plain(XEN_DOMCTL_PAUSEDOMAIN, id, "pausing a domain")
    }

    /// Takes back one [`Control::pause`].
    ///
    /// # Errors
    /// No such domain, no right.
    pub fn unpause(&mut self, id: DomId) -> Result<(), XenError> {
        self.plain(XEN_DOMCTL_UNPAUSEDOMAIN, id, "unpausing a domain")
    }

    fn plain(&mut self, cmd: u32, id: DomId, what: &'static str) -> Result<(), XenError> {
        self.domctl(&Domctl::new(cmd, id)).map(drop).map_err(|e| match e.0 {
            libc::ESRCH => XenError::NoDomain(id),
            libc::EACCES => XenError::NoInterface,
            _ => XenError::Other(what, e),
        })
    }

    /// Whether the domain is alive.
    ///
    /// # Errors
    /// No right to ask.
    pub fn state(&mut self, id: DomId) -> Result<State, XenError> {
        let got = match self.domctl(&Domctl::new(XEN_DOMCTL_GETDOMAININFO, id)) {
            Err(Errno(libc::ESRCH)) => return Ok(State::Gone),
            Err(e) => return Err(XenError::Other("reading a domain's state", e)),
            Ok(got) => got,
        };
        // Xen answers with the next domain if there is none with this id.
        let flags = u32::from_ne_bytes(got.take(DOMCTL_UNION + 4));
        if u16::from_ne_bytes(got.take(DOMCTL_UNION)) != id.0 || flags & DOMINF_DYING != 0 {
            return Ok(State::Gone);
        }
        Ok(match flags & (DOMINF_SHUTDOWN | DOMINF_PAUSED) {
            0 => State::Alive,
            DOMINF_PAUSED => State::Paused,
            _ => State::Shutdown(ShutdownReason((flags >> DOMINF_SHUTDOWN_SHIFT) as u8)),
        })
    }

    /// The time that the domain's vCPUs have run, Xen's work on their behalf included, ns.
    ///
    /// # Errors
    /// No such domain, no right to ask.
    pub fn cpu_time_ns(&mut self, id: DomId) -> Result<u64, XenError> {
        let got = self.domctl(&Domctl::new(XEN_DOMCTL_GETDOMAININFO, id));
        let got = got.map_err(|e| match e.0 {
            libc::ESRCH => XenError::NoDomain(id),
            _ => XenError::Other("reading a domain's processor time", e),
        })?;
        // Xen answers with the next domain if there is none with this id.
        if u16::from_ne_bytes(got.take(DOMCTL_UNION)) != id.0 {
            return Err(XenError::NoDomain(id));
        }
        Ok(u64::from_ne_bytes(got.take(DOMCTL_UNION + DOMINFO_CPU_TIME)))
    }

    /// Xen's version, such as `4.17.5`; empty parts if Xen does not say.
    pub fn version(&mut self) -> String {
        let Ok(version) = self.machine.call(Op::Version) else { return "unknown".to_owned() };
        let mut extra = [0; 16];
        let extra = match self.machine.call(Op::ExtraVersion(&mut extra)) {
            Ok(_) => String::from_utf8_lossy(&extra).trim_end_matches('\0').to_owned(),
            Err(_) => String::new(),
        };
        format!("{}.{}{extra}", version >> 16, version & 0xffff)
    }
}

/// What an error of `set_tdf` means.
fn refusal(id: DomId, tdf: Tdf, at: Option<Instant>, errno: Errno) -> XenError {
    match (errno.0, at) {
        (libc::ENOSYS, _) => XenError::NoDilation,
        (libc::EACCES, _) => XenError::NoInterface,
        (libc::ESRCH, _) => XenError::NoDomain(id),
        (libc::EPERM, _) => XenError::MayNotDilate(id),
        (libc::EINVAL, None) => XenError::Refused(id, tdf),
        (libc::EINVAL, Some(at)) => XenError::RefusedAt(id, tdf, at.real_ns),
        (libc::EOPNOTSUPP, _) => XenError::Unsupported(id),
        (libc::EBUSY, _) => XenError::Busy(id),
        _ => XenError::Other("setting a domain's TDF", errno),
    }
}

/// What a fake hypervisor needs to answer a [`Domctl`].
#[cfg(test)]
pub(crate) mod answering {
    use super::*;

    /// A decoded request.
    #[derive(Debug, PartialEq, Eq)]
    pub(crate) enum Request {
        /// `set_tdf`.
        Set(Set),
        /// `get_tdf`.
        Get,
        /// `getdomaininfo`.
        Info,
        /// `pausedomain`.
        Pause,
        /// `unpausedomain`.
        Unpause,
    }

    impl Domctl {
        /// Interface version, domain and operation.
        pub(crate) fn request(&self) -> (u32, DomId, Request) {
            let word = |at| u32::from_ne_bytes(self.take(at));
            let long = |at| u64::from_ne_bytes(self.take(at));
            let request = match word(0) {
                XEN_DOMCTL_SET_TDF => {
                    assert_eq!(word(DOMCTL_UNION + 12), 0, "the padding");
                    Request::Set(Set {
                        tdf: Tdf::new(word(DOMCTL_UNION), word(DOMCTL_UNION + 4)).expect("valid"),
                        flags: word(DOMCTL_UNION + 8),
                        real_ns: long(DOMCTL_UNION + 16),
                        wall_ns: long(DOMCTL_UNION + 24),
                    })
                }
                XEN_DOMCTL_GET_TDF => Request::Get,
                XEN_DOMCTL_GETDOMAININFO => Request::Info,
                XEN_DOMCTL_PAUSEDOMAIN => Request::Pause,
                XEN_DOMCTL_UNPAUSEDOMAIN => Request::Unpause,
                other => panic!("domctl {other:#x}"),
            };
            (word(4), DomId(u16::from_ne_bytes(self.take(8))), request)
        }

        /// Fills in the answer to `get_tdf`.
        pub fn answer(&mut self, get: &GetTdf) {
            for (i, word) in [get.version, get.flags, get.num, get.den].iter().enumerate() {
                self.put(DOMCTL_UNION + 4 * i, &word.to_ne_bytes());
            }
            let times =
                [get.real0_ns, get.virt0_ns, get.real_now_ns, get.virt_now_ns, get.wall_now_ns];
            for (i, time) in times.iter().enumerate() {
                self.put(DOMCTL_UNION + 16 + 8 * i, &time.to_ne_bytes());
            }
        }

        /// Fills in the answer to `getdomaininfo`.
        pub fn answer_info(&mut self, id: DomId, flags: u32, cpu_time_ns: u64) {
            self.put(DOMCTL_UNION, &id.0.to_ne_bytes());
            self.put(DOMCTL_UNION + 4, &flags.to_ne_bytes());
            self.put(DOMCTL_UNION + DOMINFO_CPU_TIME, &cpu_time_ns.to_ne_bytes());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::answering::Request;
    use super::*;

    /// A Xen of one interface version that answers every operation alike.
    struct OneVersion {
        interface: u32,
        answer: Result<GetTdf, i32>,
        tried: Vec<u32>,
    }

    impl Hypervisor for OneVersion {
        fn call(&mut self, op: Op<'_>) -> Result<u64, Errno> {
            let Op::Domctl(domctl) = op else { panic!("a domctl") };
            let (version, id, request) = domctl.request();
            self.tried.push(version);
            if version != self.interface {
                return Err(Errno(libc::EACCES));
            }
            let get = self.answer.map_err(Errno)?;
            match request {
                Request::Get => domctl.answer(&get),
                Request::Info => domctl.answer_info(DomId(id.0 + 1), 0, 0),
                Request::Set(_) | Request::Pause | Request::Unpause => {}
            }
            Ok(0)
        }
    }

    fn control(interface: u32, answer: Result<GetTdf, i32>) -> Control<OneVersion> {
        Control::new(OneVersion { interface, answer, tried: Vec::new() })
    }

    const GOOD: GetTdf = GetTdf {
        version: TDF_ABI_VERSION,
        flags: TDF_ACTIVE,
        num: 5,
        den: 2,
        real0_ns: 1,
        virt0_ns: 2,
        real_now_ns: 3,
        virt_now_ns: -4,
        wall_now_ns: i64::MAX,
    };

    #[test]
    fn the_interface_version_is_found_once_and_remembered() {
        for interface in INTERFACES {
            let mut control = control(interface, Ok(GOOD));
            let got = control.get_tdf(DomId(7)).unwrap();
            assert_eq!((got.tdf.num(), got.tdf.den(), got.virt_ns), (5, 2, -4));
            assert_eq!((got.active, got.reveal, got.wall_ns), (true, false, i64::MAX));
            control.get_tdf(DomId(7)).unwrap();
            let mut tried: Vec<u32> = (0x15..=interface).collect();
            tried.push(interface);
            assert_eq!(control.machine.tried, tried);
        }
        for stranger in [0x14, 0x19] {
            let mut control = control(stranger, Ok(GOOD));
            assert_eq!(control.get_tdf(DomId(7)), Err(XenError::NoInterface));
        }
    }

    #[test]
    fn each_error_number_has_its_sentence() {
        let (id, tdf) = (DomId(7), Tdf::ONE);
        for (errno, get, set) in [
            (libc::ENOSYS, XenError::NoDilation, XenError::NoDilation),
            (libc::ESRCH, XenError::NoDomain(id), XenError::NoDomain(id)),
            (libc::EPERM, XenError::NotControl, XenError::MayNotDilate(id)),
            (
                libc::EINVAL,
                XenError::Other("reading a domain's TDF", Errno(libc::EINVAL)),
                XenError::Refused(id, tdf),
            ),
            (
                libc::EOPNOTSUPP,
                XenError::Other("reading a domain's TDF", Errno(libc::EOPNOTSUPP)),
                XenError::Unsupported(id),
            ),
        ] {
            let mut control = control(0x17, Err(errno));
            assert_eq!(control.get_tdf(id), Err(get));
            assert_eq!(control.set_tdf(id, tdf, true), Err(set.clone()));
            let at = Instant { real_ns: 9, wall_ns: None };
            let instant = match errno {
                libc::EINVAL => XenError::RefusedAt(id, tdf, 9),
                _ => set,
            };
            assert_eq!(control.set_tdf_at(id, tdf, true, at), Err(instant));
        }
    }

    #[test]
    fn another_age_of_the_patch_and_an_impossible_factor_are_refused() {
        let mut old = control(0x15, Ok(GetTdf { version: 9, ..GOOD }));
        assert_eq!(old.get_tdf(DomId(1)), Err(XenError::Abi(9)));
        let mut mad = control(0x15, Ok(GetTdf { den: 0, ..GOOD }));
        assert_eq!(mad.get_tdf(DomId(1)), Err(XenError::Nonsense(DomId(1), 5, 0)));
    }

    #[test]
    fn a_domain_whose_place_another_takes_in_the_answer_is_gone() {
        assert_eq!(control(0x15, Ok(GOOD)).state(DomId(4)), Ok(State::Gone));
    }

    #[test]
    fn a_set_tdf_is_laid_out_as_the_header_says() {
        let tdf = Tdf::new(5, 2).unwrap();
        let set = Set { tdf, flags: TDF_REVEAL, real_ns: 6, wall_ns: 7 };
        let domctl = Domctl::set_tdf(DomId(3), &set);
        assert_eq!(domctl.request(), (0, DomId(3), Request::Set(set)));
        assert_eq!(size_of::<Domctl>(), 144);
    }
}
