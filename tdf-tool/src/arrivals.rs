// SPDX-License-Identifier: MIT OR Apache-2.0
//! `tdf arrivals`: when frames arrive at an interface of this machine, by its own clock.
//!
//! Linux stamps each frame as its driver hands it over. Only the gaps between frames are shown: they
//! are what a program in the guest can know of its network.

use std::ffi::CString;
use std::io;
use std::mem::{size_of, zeroed};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

/// A socket that hears all frames of one interface.
#[derive(Debug)]
pub struct Listener(OwnedFd);

/// All protocols, as the link layer writes it.
const ALL: u16 = (libc::ETH_P_ALL as u16).to_be();
/// Frames that may wait for us, bytes.
const ROOM: libc::c_int = 8 << 20;

fn checked(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

impl Listener {
    /// Listens on `interface`.
    ///
    /// # Errors
    /// There is none of the name, or no right.
    pub fn new(interface: &str) -> io::Result<Self> {
        let name = CString::new(interface)?;
        // SAFETY: a call without pointers; the descriptor is new and nobody else's.
        let socket = unsafe {
            let fd = libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0);
            OwnedFd::from_raw_fd(checked(fd)?)
        };
        // SAFETY: `name` is a C string.
        let index = unsafe { libc::if_nametoindex(name.as_ptr()) };
        if index == 0 {
            return Err(io::Error::last_os_error());
        }
        let on: libc::c_int = 1;
        for (option, value) in [(libc::SO_TIMESTAMPNS, on), (libc::SO_RCVBUFFORCE, ROOM)] {
            // SAFETY: `value` is valid for reading its size.
            checked(unsafe {
                libc::setsockopt(
                    socket.as_raw_fd(),
                    libc::SOL_SOCKET,
                    option,
                    (&raw const value).cast(),
                    size_of::<libc::c_int>() as libc::socklen_t,
                )
            })?;
        }
        // SAFETY: sockaddr_ll is plain numbers, for which zero is valid.
        let mut address: libc::sockaddr_ll = unsafe { zeroed() };
        address.sll_family = libc::AF_PACKET as u16;
        address.sll_protocol = ALL;
        address.sll_ifindex = index as libc::c_int;
        // SAFETY: `address` is valid for reading its size.
        checked(unsafe {
            libc::bind(
                socket.as_raw_fd(),
                (&raw const address).cast(),
                size_of::<libc::sockaddr_ll>() as libc::socklen_t,
            )
        })?;
        Ok(Self(socket))
    }

    /// Waits for the next frame that comes in and is longer than `longer` bytes: when it came, ns
    /// since 1970.
    ///
    /// # Errors
    /// The interface is gone.
    pub fn next(&mut self, longer: usize) -> io::Result<i64> {
        loop {
            let (length, kind, time) = self.receive()?;
            if kind != libc::PACKET_OUTGOING && length > longer {
                return Ok(time);
            }
        }
    }

    fn receive(&mut self) -> io::Result<(usize, u8, i64)> {
        // Only lengths count; MSG_TRUNC tells the whole one.
        let mut byte = [0u8; 1];
        let mut control = [0u64; 16];
        // SAFETY: both are plain numbers and null pointers, which are valid.
        let (mut from, mut message): (libc::sockaddr_ll, libc::msghdr) =
            unsafe { (zeroed(), zeroed()) };
        let mut part = libc::iovec { iov_base: byte.as_mut_ptr().cast(), iov_len: byte.len() };
        message.msg_name = (&raw mut from).cast();
        message.msg_namelen = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
        message.msg_iov = &raw mut part;
        message.msg_iovlen = 1;
        message.msg_control = control.as_mut_ptr().cast();
        message.msg_controllen = size_of_val(&control);
        let fd = self.0.as_raw_fd();
        // SAFETY: all that `message` points to is valid for writing, with the lengths that it says.
        let length = unsafe { libc::recvmsg(fd, &raw mut message, libc::MSG_TRUNC) };
        if length < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the kernel has filled `message` in; the first control message, if there is one,
        // lies within `control`, which is aligned for it.
        let time = unsafe {
            let first = libc::CMSG_FIRSTHDR(&raw const message);
            if first.is_null() || (*first).cmsg_type != libc::SCM_TIMESTAMPNS {
                return Err(io::Error::other("this Linux does not stamp frames"));
            }
            libc::CMSG_DATA(first).cast::<libc::timespec>().read_unaligned()
        };
        let ns = time.tv_sec * 1_000_000_000 + time.tv_nsec;
        Ok((length as usize, from.sll_pkttype, ns))
    }
}

/// The gaps between `frames` frames that are longer than `longer` bytes, ns, one in a line.
///
/// # Errors
/// As [`Listener::new`] and [`Listener::next`].
pub fn gaps(interface: &str, frames: u32, longer: usize) -> io::Result<String> {
    let mut listener = Listener::new(interface)?;
    let mut gaps = String::new();
    let mut last = listener.next(longer)?;
    for _ in 1..frames {
        let now = listener.next(longer)?;
        gaps.push_str(&format!("{}\n", now - last));
        last = now;
    }
    Ok(gaps)
}
