// SPDX-License-Identifier: MIT OR Apache-2.0
//! The image of the PV kernel; built for the host, a program that says how to build it.
#![cfg_attr(image, no_std, no_main)]

#[cfg(image)]
extern crate alloc;

#[cfg(image)]
mod image;

#[cfg(not(image))]
fn main() {
    eprintln!("this is the kernel of a Xen guest: build it with `cargo xtask build-guest`");
    std::process::exit(2);
}
