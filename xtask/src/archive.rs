// SPDX-License-Identifier: MIT OR Apache-2.0
//! An initramfs in the making.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{BufWriter, Cursor};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use anyhow::{Context, Result, anyhow};
use cpio::newc;

/// What the archive holds at one path.
#[derive(Clone)]
pub enum Entry {
    /// A file and its rights.
    File { mode: u32, content: Vec<u8> },
    /// A symbolic link.
    Link { to: String },
}

impl Entry {
    /// A file that can be run.
    pub fn program(content: Vec<u8>) -> Self {
        Self::File { mode: 0o755, content }
    }

    /// What there is at `path`, itself if it is a link.
    pub fn read(path: &Path) -> Result<Self> {
        let fail = || format!("cannot read {}", path.display());
        let meta = fs::symlink_metadata(path).with_context(fail)?;
        if meta.is_symlink() {
            let to = fs::read_link(path).with_context(fail)?;
            return Ok(Self::Link { to: to.to_string_lossy().into_owned() });
        }
        let content = fs::read(path).with_context(fail)?;
        Ok(Self::File { mode: meta.permissions().mode() & 0o777, content })
    }
}

/// An initramfs in the making. Times, owners and inode numbers are constants: the same files give
/// the same archive.
#[derive(Default)]
pub struct Archive(BTreeMap<String, Entry>);

impl Archive {
    /// Puts `entry` at `path`.
    pub fn add(&mut self, path: impl Into<String>, entry: Entry) {
        self.0.insert(path.into(), entry);
    }

    /// Whether there is something at `path`.
    pub fn has(&self, path: &str) -> bool {
        self.0.contains_key(path)
    }

    /// All that it holds.
    pub fn into_entries(self) -> impl Iterator<Item = (String, Entry)> {
        self.0.into_iter()
    }

    /// Writes it as `file`.
    pub fn write(&self, file: &Path) -> Result<()> {
        let fail = || format!("cannot write {}", file.display());
        let part = file.with_extension("part");
        let mut out = BufWriter::new(File::create(&part).with_context(fail)?);
        let mut folders = BTreeSet::new();
        let mut inode = 1;
        for (path, entry) in &self.0 {
            for (at, _) in path.match_indices('/') {
                if folders.insert(&path[..at]) {
                    inode += 1;
                    let folder = newc::Builder::new(&path[..at]).ino(inode).mode(0o040_755);
                    folder.write(&mut out, 0).finish().with_context(fail)?;
                }
            }
            inode += 1;
            let (mode, content) = match entry {
                Entry::File { mode, content } => (0o100_000 | mode, content.as_slice()),
                Entry::Link { to } => (0o120_777, to.as_bytes()),
            };
            let size = u32::try_from(content.len())?;
            let mut one =
                newc::Builder::new(path).ino(inode).nlink(1).mode(mode).write(&mut out, size);
            std::io::copy(&mut Cursor::new(content), &mut one).with_context(fail)?;
            one.finish().with_context(fail)?;
        }
        newc::trailer(&mut out).with_context(fail)?;
        out.into_inner().map_err(|e| anyhow!("{e}")).with_context(fail)?.sync_all()?;
        fs::rename(&part, file).with_context(fail)
    }
}
