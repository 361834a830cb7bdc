// SPDX-License-Identifier: MIT OR Apache-2.0
//! Numbers and structures of `xen/include/public/tdf.h`.

/// Version of the structures below; Xen reports its own in [`GetTdf::version`].
pub const TDF_ABI_VERSION: u32 = 1;

/// `XEN_DOMCTL_set_tdf`: give a domain a new time dilation factor.
///
/// Errors: `EINVAL` factor, flags or times out of range, `EPERM` the caller or the target may not,
/// `EOPNOTSUPP` this kind of domain cannot be dilated, `EBUSY` it may already read its clock without
/// Xen (`clocksource=tsc` only), `ESRCH` no such domain, `ENOSYS` no patch.
pub const XEN_DOMCTL_SET_TDF: u32 = 0x7df0;

/// `XEN_DOMCTL_get_tdf`: read a domain's factor, segment and clocks, all in one instant.
pub const XEN_DOMCTL_GET_TDF: u32 = 0x7df1;

/// `VCPUOP_tdf_sample`: a domain reads real and virtual time in one instant.
///
/// `EPERM` unless the domain was given [`TDF_REVEAL`] or is the control domain, because real time
/// is exactly what a dilated domain is not to know. For guests that measure their own dilation.
pub const VCPUOP_TDF_SAMPLE: u32 = 0x7df0;

/// Flag of [`SetTdf`] and [`GetTdf`]: the domain may use [`VCPUOP_TDF_SAMPLE`].
pub const TDF_REVEAL: u32 = 1 << 0;

/// Flag of [`SetTdf`] only: the factor changes as if it had been set at [`SetTdf::real_ns`].
///
/// For several domains at one instant. `EINVAL` unless the toolstack has paused the domain, and the
/// instant is neither in the future nor before the current segment's start, the creation of a vCPU,
/// or the last time that one of them ran.
pub const TDF_AT_REAL: u32 = 1 << 1;

/// Flag of [`SetTdf`] only: the wall clock becomes [`SetTdf::wall_ns`] in the instant of the change.
pub const TDF_WALL_ANCHOR: u32 = 1 << 2;

/// Flag of [`GetTdf`] only: the domain has been dilated at some time, so V(R) may differ from R.
pub const TDF_ACTIVE: u32 = 1 << 31;

/// Largest factor, and the inverse of the smallest (`XEN_TDF_MAX`).
pub const TDF_MAX: u32 = 1000;

/// Argument of [`XEN_DOMCTL_SET_TDF`], at the union of `struct xen_domctl`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct SetTdf {
    /// Real nanoseconds …
    pub num: u32,
    /// … in so many virtual nanoseconds. Neither may be 0; `1/TDF_MAX <= num/den <= TDF_MAX`.
    pub den: u32,
    /// [`TDF_REVEAL`], [`TDF_AT_REAL`], [`TDF_WALL_ANCHOR`]. Replaces the flags that the domain had.
    pub flags: u32,
    /// 0.
    pub pad: u32,
    /// Xen's system time, ns, with [`TDF_AT_REAL`]; else 0.
    pub real_ns: u64,
    /// ns since 1970, with [`TDF_WALL_ANCHOR`]; else 0.
    pub wall_ns: u64,
}

/// Result of [`XEN_DOMCTL_GET_TDF`]: V(R) = virt0 + (R − real0)·den/num.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct GetTdf {
    /// [`TDF_ABI_VERSION`] of the hypervisor.
    pub version: u32,
    /// [`TDF_REVEAL`], [`TDF_ACTIVE`].
    pub flags: u32,
    /// Real nanoseconds in `den` virtual ones.
    pub num: u32,
    /// Virtual nanoseconds in `num` real ones.
    pub den: u32,
    /// Start of the segment in real time, ns of Xen's system time.
    pub real0_ns: i64,
    /// Start of the segment in virtual time, ns.
    pub virt0_ns: i64,
    /// Xen's system time now, ns.
    pub real_now_ns: i64,
    /// The domain's system time in the same instant, ns.
    pub virt_now_ns: i64,
    /// The domain's wall clock in the same instant, ns since 1970.
    pub wall_now_ns: i64,
}

/// Result of [`VCPUOP_TDF_SAMPLE`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct TdfSample {
    /// Xen's system time, ns.
    pub real_ns: i64,
    /// The domain's system time in the same instant, ns.
    pub virt_ns: i64,
    /// Real nanoseconds in `den` virtual ones.
    pub num: u32,
    /// Virtual nanoseconds in `num` real ones.
    pub den: u32,
}

const _: () = assert!(size_of::<SetTdf>() == 32);
const _: () = assert!(size_of::<GetTdf>() == 56);
const _: () = assert!(size_of::<TdfSample>() == 24);
