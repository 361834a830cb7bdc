// SPDX-License-Identifier: MIT OR Apache-2.0
//! The kernel's random numbers, in a guest that has nothing random of its own.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

/// Bits that the kernel wants before it calls its random numbers good (drivers/char/random.c).
const ENOUGH_BITS: libc::c_int = 256;

/// Bytes of a seed that are used, at most.
const MOST: usize = 4096;

/// `struct rand_pool_info` of <linux/random.h>, with room behind it.
#[repr(C)]
struct PoolInfo {
    /// What the bytes are worth.
    bits: libc::c_int,
    /// How many of them there are.
    bytes: libc::c_int,
    seed: [u8; MOST],
}

/// `RNDADDENTROPY`: `_IOW('R', 3, int[2])`.
const ADD_ENTROPY: libc::c_ulong = 0x4008_5203;

/// Seeds the kernel's random numbers with `seed` (its first 4096 bytes), which is taken for good.
///
/// # Errors
/// The seed is empty, or the system's: who is not root is refused.
pub fn seed(seed: &[u8]) -> io::Result<()> {
    let seed = &seed[..seed.len().min(MOST)];
    if seed.is_empty() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "an empty seed"));
    }
    let mut info =
        PoolInfo { bits: ENOUGH_BITS, bytes: seed.len() as libc::c_int, seed: [0; MOST] };
    info.seed[..seed.len()].copy_from_slice(seed);
    let device = File::open("/dev/random")?;
    // SAFETY: the kernel reads `bytes` bytes of `seed`, which has them.
    match unsafe { libc::ioctl(device.as_raw_fd(), ADD_ENTROPY as _, &raw const info) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
