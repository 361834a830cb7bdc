// SPDX-License-Identifier: MIT OR Apache-2.0
//! Xenstore: what its messages are, and a client for them.
//!
//! The daemon closes the connection of whoever sends it a message that is too long, for good, so
//! lengths are checked before the first byte leaves.

mod client;

use core::fmt;

pub use client::{Client, Error, Event, Link, Names};

/// `XENSTORE_PAYLOAD_MAX`: bytes after the header of a message.
pub const PAYLOAD_MAX: usize = 4096;
/// `XENSTORE_ABS_PATH_MAX`.
pub const ABSOLUTE_PATH_MAX: usize = 3072;
/// `XENSTORE_REL_PATH_MAX`.
pub const RELATIVE_PATH_MAX: usize = 2048;

macro_rules! kinds {
    ($($(#[$doc:meta])* $name:ident = $number:literal,)*) => {
        /// `enum xsd_sockmsg_type`: the messages that this project speaks.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(u32)]
        pub enum Kind {
            $($(#[$doc])* $name = $number,)*
        }

        impl Kind {
            /// The kind with that number.
            pub fn from_number(number: u32) -> Option<Self> {
                match number {
                    $($number => Some(Self::$name),)*
                    _ => None,
                }
            }
        }
    };
}

kinds! {
    /// The names of a node's children.
    Directory = 1,
    /// A node's value.
    Read = 2,
    /// Who may use a node.
    GetPerms = 3,
    /// Tell of changes below a node.
    Watch = 4,
    /// Do not any more.
    Unwatch = 5,
    /// What follows is to happen in one instant, or not.
    TransactionStart = 6,
    /// The end of that.
    TransactionEnd = 7,
    /// The home of a domain.
    GetDomainPath = 10,
    /// Sets a node's value, and makes the node if there is none.
    Write = 11,
    /// Makes a node if there is none.
    Mkdir = 12,
    /// Removes a node and all below it.
    Rm = 13,
    /// Says who may use a node.
    SetPerms = 14,
    /// Something has changed below a watched node.
    WatchEvent = 15,
    /// The answer to a request that was refused.
    Error = 16,
}

/// `struct xsd_sockmsg`: what every message starts with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// A [`Kind`].
    pub kind: u32,
    /// Repeated in the reply.
    pub request: u32,
    /// The transaction.
    pub transaction: u32,
    /// Bytes that follow.
    pub len: u32,
}

impl Header {
    /// Bytes of a header.
    pub const SIZE: usize = 16;

    /// As bytes.
    pub fn to_bytes(self) -> [u8; Self::SIZE] {
        let mut bytes = [0; Self::SIZE];
        let fields = [self.kind, self.request, self.transaction, self.len];
        for (at, field) in bytes.chunks_exact_mut(4).zip(fields) {
            at.copy_from_slice(&field.to_le_bytes());
        }
        bytes
    }

    /// From bytes.
    pub fn from_bytes(bytes: [u8; Self::SIZE]) -> Self {
        let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = bytes;
        Self {
            kind: u32::from_le_bytes([a, b, c, d]),
            request: u32::from_le_bytes([e, f, g, h]),
            transaction: u32::from_le_bytes([i, j, k, l]),
            len: u32::from_le_bytes([m, n, o, p]),
        }
    }
}

macro_rules! refusals {
    ($($name:ident $text:literal $sentence:literal,)*) => {
        /// Why the daemon did not do what it was asked.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Refusal {
            $(#[doc = concat!("`", $text, "`: ", $sentence, ".")] $name,)*
            /// An error that this project does not know.
            Other,
        }

        impl Refusal {
            /// The error with that name.
            pub fn from_name(name: &[u8]) -> Self {
                $(if name == $text.as_bytes() { return Self::$name; })*
                Self::Other
            }

            /// Its name on the wire.
            pub fn name(self) -> &'static str {
                match self {
                    $(Self::$name => $text,)*
                    Self::Other => "EIO",
                }
            }
        }

        impl fmt::Display for Refusal {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(match self {
                    $(Self::$name => concat!($sentence, " (", $text, ")"),)*
                    Self::Other => "xenstore refuses for a reason that is not known here",
                })
            }
        }
    };
}

refusals! {
    NotFound "ENOENT" "there is no such node in xenstore",
    Access "EACCES" "this domain may not use the node in xenstore",
    Invalid "EINVAL" "xenstore finds the request invalid",
    Exists "EEXIST" "xenstore has this already",
    IsDirectory "EISDIR" "the node in xenstore has children",
    Again "EAGAIN" "somebody else has changed xenstore during the transaction",
    NoSpace "ENOSPC" "the quota of this domain in xenstore is used up",
    TooBig "E2BIG" "this is too much for one message of xenstore, or for the quota of watches",
    NoMemory "ENOMEM" "xenstore has no memory left",
    Io "EIO" "xenstore has lost its data",
    Busy "EBUSY" "xenstore is busy with another transaction",
    NotPermitted "EPERM" "xenstore does not permit this domain to do it",
    ReadOnly "EROFS" "xenstore takes no changes",
    NotImplemented "ENOSYS" "this xenstore does not know the request",
    QuotaUsed "EDQUOT" "a quota of this domain in xenstore is used up",
}

/// A transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tx(pub u32);

impl Tx {
    /// No transaction: each request happens alone.
    pub const NONE: Self = Self(0);
}

/// Which node: a path, or a path and one more step, so that nobody has to join them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Path<'a> {
    base: &'a str,
    key: &'a str,
}

impl<'a> From<&'a str> for Path<'a> {
    fn from(base: &'a str) -> Self {
        Self { base, key: "" }
    }
}

impl<'a> From<(&'a str, &'a str)> for Path<'a> {
    fn from((base, key): (&'a str, &'a str)) -> Self {
        Self { base, key }
    }
}

impl<'a> Path<'a> {
    /// What goes into a message, if it is one: not empty, not too long, and without a NUL, which would
    /// end it early.
    fn parts(self) -> Option<[&'a [u8]; 3]> {
        let Self { base, key } = self;
        let step = if key.is_empty() { "" } else { "/" };
        let most = if base.starts_with('/') { ABSOLUTE_PATH_MAX } else { RELATIVE_PATH_MAX };
        let fits = base.len() + step.len() + key.len() < most;
        let clean = !base.is_empty() && !base.contains('\0') && !key.contains('\0');
        (fits && clean).then_some([base.as_bytes(), step.as_bytes(), key.as_bytes()])
    }
}

impl fmt::Display for Path<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.base)?;
        if self.key.is_empty() { Ok(()) } else { write!(f, "/{}", self.key) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_header_survives_the_wire(kind: u32, request: u32, transaction: u32, len: u32) {
            let header = Header { kind, request, transaction, len };
            prop_assert_eq!(Header::from_bytes(header.to_bytes()), header);
        }
    }

    #[test]
    fn kinds_and_errors_have_their_names_and_numbers() {
        for number in 0..100 {
            if let Some(kind) = Kind::from_number(number) {
                assert_eq!(kind as u32, number);
            }
        }
        assert_eq!(Kind::from_number(15), Some(Kind::WatchEvent));
        for name in ["ENOENT", "EAGAIN", "EACCES", "E2BIG", "EDQUOT"] {
            assert_eq!(Refusal::from_name(name.as_bytes()).name(), name);
        }
        assert_eq!(Refusal::from_name(b"EWHATEVER"), Refusal::Other);
    }

    #[test]
    fn a_path_is_bounded_and_has_no_nul() {
        let good = |path: Path| path.parts().is_some();
        assert!(good("a".into()) && good(("/a", "b").into()));
        assert!(!good("".into()) && !good("a\0b".into()) && !good(("a", "b\0").into()));
        let long = |n: usize| "/".to_owned() + &"x".repeat(n - 1);
        assert!(good(long(3071).as_str().into()) && !good(long(3072).as_str().into()));
        assert!(
            good((long(3069).as_str(), "k").into()) && !good((long(3070).as_str(), "k").into())
        );
        assert!(good(long(2048)[1..].into()) && !good(long(2049)[1..].into()));
        assert_eq!(Path::from(("/a", "b")).to_string(), "/a/b");
        assert_eq!(Path::from("/a").to_string(), "/a");
    }
}
