// SPDX-License-Identifier: MIT OR Apache-2.0
//! Pages that another domain lends, mapped through `/dev/xen/gntdev`.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::ptr::{self, NonNull};

use crate::xen::DomId;

const DEVICE: &str = "/dev/xen/gntdev";
/// Bytes of a page.
pub const PAGE: usize = 4096;
/// Most pages that are mapped at once.
const MOST: usize = 1024;

/// `_IOC(_IOC_NONE, 'G', number, size)`.
const fn request(number: u64, size: u64) -> u64 {
    (size << 16) | ((b'G' as u64) << 8) | number
}

/// `struct ioctl_gntdev_map_grant_ref` with one reference; more may follow.
const MAP: u64 = request(0, 24);
/// `struct ioctl_gntdev_unmap_grant_ref`.
const UNMAP: u64 = request(1, 16);

#[repr(C)]
struct Unmap {
    index: u64,
    count: u32,
    pad: u32,
}

/// Pages of another domain, side by side, for as long as this lives.
///
/// The other domain can change them at any time: they are accessed atomically, through pointers only.
#[derive(Debug)]
pub struct Lent {
    device: File,
    index: u64,
    pages: usize,
    address: NonNull<u8>,
}

impl Lent {
    /// Maps the pages that `domain` lends under `references`, in this order.
    ///
    /// # Errors
    /// There is no gntdev; the domain lends us no such page; it is none or too many.
    pub fn map(domain: DomId, references: &[u32]) -> io::Result<Self> {
        if references.is_empty() || references.len() > MOST {
            return Err(io::Error::other(format!("{} pages cannot be mapped", references.len())));
        }
        let device = OpenOptions::new().read(true).write(true).open(DEVICE)?;
        // count, padding, the index that the kernel fills in, then domain and reference of each.
        let mut argument: Vec<u64> = vec![references.len() as u64, 0];
        let packed = |reference: &u32| u64::from(*reference) << 32 | u64::from(domain.0);
        argument.extend(references.iter().map(packed));
        // SAFETY: the argument has room for what its count says.
        if unsafe { libc::ioctl(device.as_raw_fd(), MAP, argument.as_mut_ptr()) } != 0 {
            return Err(io::Error::last_os_error());
        }
        let (index, pages) = (argument[1], references.len());
        // SAFETY: a new mapping at an address of the kernel's choice touches no memory of ours.
        let address = unsafe {
            libc::mmap(
                ptr::null_mut(),
                pages * PAGE,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                device.as_raw_fd(),
                index as libc::off_t,
            )
        };
        let error = io::Error::last_os_error();
        match NonNull::new(address.cast::<u8>()).filter(|_| address != libc::MAP_FAILED) {
            Some(address) => Ok(Self { device, index, pages, address }),
            None => {
                unmap(&device, index, pages);
                Err(error)
            }
        }
    }

    /// Where they are.
    pub const fn address(&self) -> *mut u8 {
        self.address.as_ptr()
    }

    /// How many bytes they have.
    pub const fn bytes(&self) -> usize {
        self.pages * PAGE
    }
}

fn unmap(device: &File, index: u64, pages: usize) {
    let argument = Unmap { index, count: pages as u32, pad: 0 };
    // SAFETY: the argument is valid for reading. If it fails, closing the device does the same.
    unsafe { libc::ioctl(device.as_raw_fd(), UNMAP, &raw const argument) };
}

impl Drop for Lent {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours, and whoever has its address borrows from us.
        unsafe { libc::munmap(self.address.as_ptr().cast(), self.bytes()) };
        unmap(&self.device, self.index, self.pages);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_numbers_are_those_of_the_kernels_header() {
        assert_eq!((MAP, UNMAP), (0x0018_4700, 0x0010_4701));
        assert_eq!(size_of::<Unmap>(), 16);
        assert!(Lent::map(DomId(1), &[]).is_err());
    }
}
