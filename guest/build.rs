// SPDX-License-Identifier: MIT OR Apache-2.0
//! Links the image, but only for a build that asks for it.
//!
//! `-Cpanic=abort` in the target's flags is that request: the profile's own `panic = "abort"` is not
//! visible here. Everything else (host builds, tests, clippy) gets an ordinary program.

use std::env;

fn main() {
    println!("cargo::rustc-check-cfg=cfg(image)");
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=link.ld");
    if env::var("CARGO_CFG_PANIC").as_deref() != Ok("abort") {
        return;
    }
    let here = env::var("CARGO_MANIFEST_DIR").expect("cargo sets it");
    println!("cargo::rustc-cfg=image");
    let script = format!("-Wl,-T,{here}/link.ld");
    for arg in [
        "-nostartfiles",
        "-nostdlib",
        "-static",
        "-no-pie",
        "-Wl,--build-id=none",
        "-Wl,-z,max-page-size=4096",
        "-Wl,-z,norelro",
        "-Wl,--no-eh-frame-hdr",
        &script,
    ] {
        println!("cargo::rustc-link-arg-bins={arg}");
    }
}
