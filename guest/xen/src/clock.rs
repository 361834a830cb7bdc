// SPDX-License-Identifier: MIT OR Apache-2.0
//! The clocks that Xen publishes in shared memory, and their arithmetic.
//!
//! Xen gives each vCPU a line through one point: at `tsc_timestamp` the system time was
//! `system_time`, and it grows by `tsc_to_system_mul · 2^(tsc_shift − 32)` ns a tick. Both records
//! here are guarded by a version that is odd while Xen writes. For a dilated domain the line *is*
//! virtual time; nothing in this module knows about dilation.

use core::ptr;
use core::sync::atomic::{AtomicU32, Ordering, fence};

use crate::abi::{shared_info, vcpu_time_info};

/// `XEN_PVCLOCK_TSC_STABLE_BIT` of [`TimeInfo::flags`].
pub const TSC_STABLE: u8 = 1 << 0;

/// A private copy of `struct vcpu_time_info`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TimeInfo {
    /// Even, and another one whenever Xen has written.
    pub version: u32,
    /// TSC at [`Self::system_time_ns`].
    pub tsc_timestamp: u64,
    /// System time at [`Self::tsc_timestamp`], ns.
    pub system_time_ns: u64,
    /// Slope, with [`Self::shift`].
    pub mul: u32,
    /// Slope, with [`Self::mul`].
    pub shift: i8,
    /// [`TSC_STABLE`].
    pub flags: u8,
}

/// Reads under the version protocol: `read` is repeated until no writer came in between.
///
/// # Safety
/// `version` is valid and aligned, and whoever writes it does so atomically.
unsafe fn consistent<T>(version: *mut u32, mut read: impl FnMut() -> T) -> (u32, T) {
    // SAFETY: the caller's promise.
    let version = unsafe { AtomicU32::from_ptr(version) };
    loop {
        let before = version.load(Ordering::Acquire);
        if before & 1 == 0 {
            let value = read();
            fence(Ordering::Acquire);
            if version.load(Ordering::Relaxed) == before {
                return (before, value);
            }
        }
        core::hint::spin_loop();
    }
}

/// A vCPU's time record, where Xen writes it.
#[derive(Clone, Copy, Debug)]
pub struct TimeArea(*mut vcpu_time_info);

impl TimeArea {
    /// The record at `area`.
    ///
    /// # Safety
    /// `area` stays mapped while this value is used, and is written by nobody but a writer that
    /// keeps the version protocol.
    pub const unsafe fn new(area: *mut vcpu_time_info) -> Self {
        Self(area)
    }

    /// The record, and what `tsc` said while it was valid.
    pub fn read(&self, mut tsc: impl FnMut() -> u64) -> (TimeInfo, u64) {
        let area = self.0;
        let read = move || {
            // SAFETY: `new`'s caller vouches for the area; a torn value is thrown away by
            // `consistent`.
            unsafe {
                let info = TimeInfo {
                    version: 0,
                    tsc_timestamp: ptr::read_volatile(&raw const (*area).tsc_timestamp),
                    system_time_ns: ptr::read_volatile(&raw const (*area).system_time),
                    mul: ptr::read_volatile(&raw const (*area).tsc_to_system_mul),
                    shift: ptr::read_volatile(&raw const (*area).tsc_shift),
                    flags: ptr::read_volatile(&raw const (*area).pad1[0]).cast_unsigned(),
                };
                (info, tsc())
            }
        };
        // SAFETY: as above.
        let (version, (info, tsc)) = unsafe { consistent(&raw mut (*area).version, read) };
        (TimeInfo { version, ..info }, tsc)
    }
}

impl TimeInfo {
    /// The nanoseconds in `ticks`, in units of 2⁻⁶⁴ ns, exactly; `None` beyond ±2⁶² ns or if the
    /// slope is absurd.
    pub fn exact(&self, ticks: i64) -> Option<i128> {
        // 63 bits of ticks and 32 of slope leave 32 bits for the shift.
        let scaled = i128::from(ticks) * i128::from(self.mul);
        match i32::from(self.shift) + 32 {
            up @ 0..=126 => {
                let value = scaled.checked_mul(1i128.checked_shl(up as u32)?)?;
                (value.unsigned_abs() < 1 << 126).then_some(value)
            }
            down @ -96..0 => Some(scaled >> -down),
            _ => None,
        }
    }

    /// System time when the TSC shows `tsc`, ns, rounded down once.
    ///
    /// A TSC before [`Self::tsc_timestamp`] extrapolates backwards. Saturates.
    pub fn system_time_at(&self, tsc: u64) -> i64 {
        let ticks = tsc.wrapping_sub(self.tsc_timestamp).cast_signed();
        let since = self.exact(ticks).map_or(i128::from(i64::MAX), |exact| exact >> 64);
        let time = i128::from(self.system_time_ns.cast_signed()) + since;
        time.clamp(i64::MIN.into(), i64::MAX.into()) as i64
    }

    /// Ticks a second that this slope claims, Hz; `None` if it claims none.
    pub fn frequency_hz(&self) -> Option<u64> {
        // One tick in 2⁻⁶⁴ ns; a second is 10⁹·2⁶⁴ of those.
        let tick = u128::try_from(self.exact(1)?).ok()?;
        u64::try_from((1_000_000_000u128 << 64).checked_div(tick)?).ok()
    }
}

/// The wall clock's base, where Xen writes it.
#[derive(Clone, Copy, Debug)]
pub struct WallArea(*mut shared_info);

impl WallArea {
    /// The base in the shared info page at `area`.
    ///
    /// # Safety
    /// As for [`TimeArea::new`].
    pub const unsafe fn new(area: *mut shared_info) -> Self {
        Self(area)
    }

    /// What has to be added to system time to get the time of day, ns since 1970; saturates.
    pub fn base_ns(&self) -> i64 {
        let area = self.0;
        let read = move || {
            // SAFETY: `new`'s caller vouches for the area; a torn value is thrown away.
            unsafe {
                let low = ptr::read_volatile(&raw const (*area).wc_sec);
                let high = ptr::read_volatile(&raw const (*area).wc_sec_hi);
                let nsec = ptr::read_volatile(&raw const (*area).wc_nsec);
                (u64::from(high) << 32 | u64::from(low), nsec)
            }
        };
        // SAFETY: as above.
        let (_, (sec, nsec)) = unsafe { consistent(&raw mut (*area).wc_version, read) };
        let ns = u128::from(sec) * 1_000_000_000 + u128::from(nsec);
        i64::try_from(ns).unwrap_or(i64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::sync::atomic::AtomicBool;

    fn info(mul: u32, shift: i8) -> TimeInfo {
        TimeInfo { version: 2, tsc_timestamp: 1_000, system_time_ns: 5_000, mul, shift, flags: 0 }
    }

    #[test]
    fn known_slopes() {
        // One ns a tick, 2 ticks a ns, 2 ns a tick.
        for (shift, at, ns) in [(1, 1_010, 5_010), (0, 1_010, 5_005), (2, 1_010, 5_020)] {
            assert_eq!(info(1 << 31, shift).system_time_at(at), ns);
        }
        // Before the stamp: half a ns back is a whole one, rounded down.
        assert_eq!(info(1 << 31, 0).system_time_at(999), 4_999);
        assert_eq!(info(1 << 31, 1).frequency_hz(), Some(1_000_000_000));
        assert_eq!(info(0, 0).frequency_hz(), None);
    }

    #[test]
    fn an_absurd_slope_saturates_instead_of_panicking() {
        for shift in i8::MIN..=i8::MAX {
            for tsc in [0, 1_000, u64::MAX / 2, u64::MAX] {
                let time = info(u32::MAX, shift).system_time_at(tsc);
                let _ = info(u32::MAX, shift).frequency_hz();
                assert!(tsc != 1_000 || time == 5_000 || time == i64::MAX);
            }
        }
    }

    proptest! {
        /// Against the definition, with nothing rounded: ns = ticks·mul·2^(shift−32).
        #[test]
        fn the_line_is_exact_up_to_one_rounding(
            ticks in -(1i64 << 40)..(1i64 << 40), mul in 1u32 << 31.., shift in -20i8..8
        ) {
            let at = 1_000u64.wrapping_add_signed(ticks);
            let got = i128::from(info(mul, shift).system_time_at(at)) - 5_000;
            let numerator = (i128::from(ticks) * i128::from(mul)) << (shift + 20);
            let exact = numerator.div_euclid(1 << 52);
            prop_assert_eq!(got, exact);
        }

        #[test]
        fn later_ticks_are_never_earlier_times(
            a in 0u64..1 << 50, b in 0u64..1 << 50, mul in 1u32 << 31.., shift in -30i8..4
        ) {
            let t = info(mul, shift);
            prop_assert_eq!(t.system_time_at(a) <= t.system_time_at(b), a <= b || t.system_time_at(a) == t.system_time_at(b));
        }
    }

    /// A writer that keeps the protocol never shows a reader half of a record.
    #[test]
    fn a_torn_record_is_never_seen() {
        struct Shared(*mut vcpu_time_info);
        // SAFETY: accessed under the version protocol, as by Xen.
        unsafe impl Sync for Shared {}

        let mut record = vcpu_time_info {
            version: 0,
            pad0: 0,
            tsc_timestamp: 0,
            system_time: 0,
            tsc_to_system_mul: 0,
            tsc_shift: 0,
            pad1: [0; 3],
        };
        let shared = Shared(&raw mut record);
        let stop = AtomicBool::new(false);
        let (shared, stop) = (&shared, &stop);
        std::thread::scope(|scope| {
            scope.spawn(move || {
                let area = shared.0;
                for n in 1..200_000u32 {
                    // SAFETY: the only writer; `record` outlives the scope.
                    unsafe {
                        let version = AtomicU32::from_ptr(&raw mut (*area).version);
                        version.store(2 * n - 1, Ordering::Relaxed);
                        fence(Ordering::Release);
                        ptr::write_volatile(&raw mut (*area).tsc_timestamp, n.into());
                        ptr::write_volatile(&raw mut (*area).system_time, n.into());
                        ptr::write_volatile(&raw mut (*area).tsc_to_system_mul, n);
                        version.store(2 * n, Ordering::Release);
                    }
                }
                stop.store(true, Ordering::Relaxed);
            });
            // SAFETY: `record` outlives the scope.
            let area = unsafe { TimeArea::new(shared.0) };
            let mut last = 0;
            while !stop.load(Ordering::Relaxed) {
                let (info, _) = area.read(|| 0);
                let n = info.version / 2;
                assert_eq!(info.version % 2, 0);
                assert!(n >= last);
                assert_eq!((info.mul, info.tsc_timestamp), (n, n.into()));
                assert_eq!(info.system_time_ns, u64::from(n));
                last = n;
            }
        });
    }
}
