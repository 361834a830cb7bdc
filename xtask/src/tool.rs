// SPDX-License-Identifier: MIT OR Apache-2.0
//! `tdf`, built for any dom0: one static file that needs no library of the host's.

use std::path::PathBuf;

use anyhow::Result;

use crate::exec::Step;
use crate::guest::cargo;
use crate::paths;

const TARGET: &str = "x86_64-unknown-linux-gnu";

/// Builds `tdf`; returns the file.
///
/// # Errors
/// The build failed.
pub fn build() -> Result<PathBuf> {
    let mut step = Step::begin("tdf", "tdf for dom0")?;
    // A folder of its own: the flags differ from the kernel's, and cargo would build everything
    // anew at each change between the two.
    let dir = paths::target().join("tdf-static");
    step.run(
        &cargo()
            .env(
                "CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUSTFLAGS",
                format!(
                    "-Ctarget-feature=+crt-static --remap-path-prefix={}=",
                    paths::root().display()
                ),
            )
            .args(["build", "--locked", "-p", "tdf-tool", "--release", "--target", TARGET])
            .arg("--target-dir")
            .arg(&dir),
    )?;
    step.done("built, static");
    Ok(dir.join(TARGET).join("release/tdf"))
}
