// SPDX-License-Identifier: MIT OR Apache-2.0
//! What was built from what: a step is skipped when its inputs are those of its last success.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use sha2::{Digest, Sha256};

use crate::exec::write_atomic;

/// A hash over the inputs of a step.
#[derive(Default)]
pub struct Inputs(Sha256);

impl Inputs {
    /// No inputs yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a text.
    pub fn text(mut self, text: &str) -> Self {
        self.0.update((text.len() as u64).to_le_bytes());
        self.0.update(text);
        self
    }

    /// Adds a file's content.
    pub fn file(mut self, file: &Path) -> Result<Self> {
        let content = fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
        self.0.update((content.len() as u64).to_le_bytes());
        self.0.update(content);
        Ok(self)
    }

    /// The hash, in hexadecimal.
    pub fn hash(self) -> String {
        hex(&self.0.finalize())
    }
}

/// Bytes in hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// SHA-256 of a byte string, in hexadecimal.
pub fn sha256(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

/// The record of a step's last success.
pub struct Stamp(PathBuf);

impl Stamp {
    /// The stamp kept in `file`.
    pub fn new(file: impl Into<PathBuf>) -> Self {
        Self(file.into())
    }

    /// Whether the last success had these inputs.
    pub fn is(&self, inputs: &str) -> bool {
        fs::read_to_string(&self.0).is_ok_and(|old| old.trim() == inputs)
    }

    /// Forgets the last success; said before a step begins to change things.
    pub fn clear(&self) {
        // Nothing to forget is as good as forgotten.
        let _ = fs::remove_file(&self.0);
    }

    /// Records a success.
    pub fn set(&self, inputs: &str) -> Result<()> {
        write_atomic(&self.0, inputs)
    }
}
