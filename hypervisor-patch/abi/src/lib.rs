// SPDX-License-Identifier: MIT OR Apache-2.0
//! The time dilation factor and the hypercalls that carry it.
//!
//! The C side of this crate is `xen/include/public/tdf.h`, which the patch queue adds to Xen. The
//! two are held together by a test that compiles one against the other. Everything that speaks of
//! time dilation to Xen (the guest kernel, `tdf`, the lab) takes its numbers from here.
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]

mod factor;
mod hypercall;

pub use factor::{Tdf, TdfError};
pub use hypercall::*;
