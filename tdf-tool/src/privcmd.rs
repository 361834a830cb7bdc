// SPDX-License-Identifier: MIT OR Apache-2.0
//! Hypercalls from user space: `/dev/xen/privcmd`.
//!
//! Xen reads and writes the argument through the page tables of the caller and cannot fault a page
//! in, so the argument lives in one page that stays mapped: of `/dev/xen/hypercall` where Linux has
//! it (4.18), else locked memory that no child process shares.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::ptr::{self, NonNull};

use tdf_abi::VCPUOP_TDF_SAMPLE;
use tdf_xen::abi::VCPUOP_GET_RUNSTATE_INFO;

use crate::xen::{Errno, Hypervisor, Op};

const PRIVCMD: &str = "/dev/xen/privcmd";
const HYPERCALL: &str = "/dev/xen/hypercall";

const HYPERVISOR_XEN_VERSION: u64 = 17;
const HYPERVISOR_VCPU_OP: u64 = 24;
const HYPERVISOR_DOMCTL: u64 = 36;
const XENVER_VERSION: u64 = 0;
const XENVER_EXTRAVERSION: u64 = 1;

const PAGE: usize = 4096;

/// `struct privcmd_hypercall`.
#[repr(C)]
struct Hypercall {
    op: u64,
    arg: [u64; 5],
}

/// `IOCTL_PRIVCMD_HYPERCALL`: `_IOC(_IOC_NONE, 'P', 0, sizeof(struct privcmd_hypercall))`.
const IOCTL_HYPERCALL: u32 = ((size_of::<Hypercall>() as u32) << 16) | ((b'P' as u32) << 8);

/// Why no hypercall can be made at all.
#[derive(Debug)]
pub enum OpenError {
    /// No `/dev/xen/privcmd`.
    NotXen,
    /// It is there, but cannot be opened.
    Open(io::Error),
    /// No memory for the argument.
    Memory(io::Error),
}

impl fmt::Display for OpenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotXen => write!(
                f,
                "there is no {PRIVCMD}: tdf runs in dom0 of a Xen host (`tdf probe` in a guest), \
                 with the module xen-privcmd loaded"
            ),
            Self::Open(e) => write!(f, "cannot open {PRIVCMD}: {e}; tdf needs root"),
            Self::Memory(e) => write!(f, "cannot lock a page for hypercalls: {e}"),
        }
    }
}

impl std::error::Error for OpenError {}

/// An open `/dev/xen/privcmd` and the page that arguments pass through.
#[derive(Debug)]
pub struct Privcmd {
    file: File,
    page: NonNull<u8>,
}

impl Privcmd {
    /// Opens the device.
    ///
    /// # Errors
    /// Not on Xen, not root, no memory.
    pub fn open() -> Result<Self, OpenError> {
        let open = |path| OpenOptions::new().read(true).write(true).open(path);
        if !Path::new(PRIVCMD).exists() {
            return Err(OpenError::NotXen);
        }
        let file = open(PRIVCMD).map_err(OpenError::Open)?;
        let page = match open(HYPERCALL) {
            Ok(buffers) => map(libc::MAP_SHARED, buffers.as_raw_fd()),
            Err(_) => map(libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1).and_then(lock),
        };
        Ok(Self { file, page: page.map_err(OpenError::Memory)? })
    }

    /// Makes hypercall `op`; the address of the page, which holds `argument` meanwhile, is put
    /// behind `args`.
    fn hypercall(&mut self, op: u64, args: &[u64], argument: &mut [u8]) -> Result<u64, Errno> {
        assert!(argument.len() <= PAGE && args.len() < 5, "an argument of {}", argument.len());
        let mut call = Hypercall { op, arg: [0; 5] };
        call.arg[..args.len()].copy_from_slice(args);
        call.arg[args.len()] = self.page.as_ptr() as u64;
        // SAFETY: `page` is PAGE bytes that only this object uses, mapped until it is dropped, and
        // `argument` is at most as long; the two cannot overlap.
        unsafe {
            ptr::copy_nonoverlapping(argument.as_ptr(), self.page.as_ptr(), argument.len());
        }
        // SAFETY: the file is privcmd and `call` the structure that this request reads. `Op` admits
        // only operations whose one pointer is to the page, and that write no more than a page.
        let result = unsafe {
            libc::ioctl(self.file.as_raw_fd(), libc::Ioctl::from(IOCTL_HYPERCALL), &raw mut call)
        };
        if result < 0 {
            return Err(Errno(io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO)));
        }
        // SAFETY: as above, in the other direction.
        unsafe {
            ptr::copy_nonoverlapping(self.page.as_ptr(), argument.as_mut_ptr(), argument.len());
        }
        Ok(result as u64)
    }
}

impl Drop for Privcmd {
    fn drop(&mut self) {
        // SAFETY: `page` was mapped by `map` with this length and is used by nobody else.
        unsafe { libc::munmap(self.page.as_ptr().cast(), PAGE) };
    }
}

impl Hypervisor for Privcmd {
    fn call(&mut self, op: Op<'_>) -> Result<u64, Errno> {
        match op {
            Op::Domctl(domctl) => self.hypercall(HYPERVISOR_DOMCTL, &[], domctl.bytes_mut()),
            Op::Sample(sample) => {
                self.hypercall(HYPERVISOR_VCPU_OP, &[u64::from(VCPUOP_TDF_SAMPLE), 0], sample)
            }
            Op::Runstate(info) => {
                self.hypercall(HYPERVISOR_VCPU_OP, &[u64::from(VCPUOP_GET_RUNSTATE_INFO), 0], info)
            }
            Op::Version => self.hypercall(HYPERVISOR_XEN_VERSION, &[XENVER_VERSION], &mut []),
            Op::ExtraVersion(extra) => {
                self.hypercall(HYPERVISOR_XEN_VERSION, &[XENVER_EXTRAVERSION], extra)
            }
        }
    }
}

fn map(flags: i32, fd: i32) -> io::Result<NonNull<u8>> {
    let access = libc::PROT_READ | libc::PROT_WRITE;
    // SAFETY: a new mapping at an address of the kernel's choice touches no memory in use.
    let page = unsafe { libc::mmap(ptr::null_mut(), PAGE, access, flags, fd, 0) };
    if page == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    NonNull::new(page.cast()).ok_or_else(|| io::Error::other("mapped at address 0"))
}

fn lock(page: NonNull<u8>) -> io::Result<NonNull<u8>> {
    let address = page.as_ptr().cast();
    // SAFETY: `address` is a mapping of PAGE bytes made by `map`; neither call changes its contents.
    let result = unsafe {
        match libc::mlock(address, PAGE) {
            0 => libc::madvise(address, PAGE, libc::MADV_DONTFORK),
            error => error,
        }
    };
    if result == 0 { Ok(page) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_request_number_is_that_of_the_linux_header() {
        // sizeof(struct privcmd_hypercall) is 48.
        assert_eq!(IOCTL_HYPERCALL, 0x0030_5000);
    }

    #[test]
    fn without_xen_one_sentence_says_so() {
        if !Path::new(PRIVCMD).exists() {
            let error = Privcmd::open().expect_err("no Xen here").to_string();
            assert!(error.contains(PRIVCMD) && !error.contains('\n'), "{error}");
        }
    }
}
