// SPDX-License-Identifier: MIT OR Apache-2.0
//! One xtask at a time: builds and labs share files below `target/`.

use std::fs::{self, File};

use anyhow::{Context, Result};

use crate::paths;

/// Waits for every other xtask of this checkout to end. The kernel releases the lock when its
/// holder dies, however it dies.
///
/// # Errors
/// The lock's file cannot be made.
pub fn take() -> Result<File> {
    let path = paths::work().join("lock");
    fs::create_dir_all(paths::work())
        .with_context(|| format!("cannot write {}", path.display()))?;
    let file = File::create(&path).with_context(|| format!("cannot write {}", path.display()))?;
    if file.try_lock().is_err() {
        eprintln!("waiting for another cargo xtask in this checkout");
        file.lock().with_context(|| format!("cannot lock {}", path.display()))?;
    }
    Ok(file)
}
