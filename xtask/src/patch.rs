// SPDX-License-Identifier: MIT OR Apache-2.0
//! The patch queue against a Xen tree.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::exec::{Cmd, Step};
use crate::paths;

/// The folder of the queue.
pub fn folder() -> PathBuf {
    paths::root().join("hypervisor-patch/patches")
}

/// The patches, in the order of `series`.
///
/// # Errors
/// `series` names a patch that is not there, or a patch is there that `series` does not name.
pub fn series() -> Result<Vec<PathBuf>> {
    let dir = folder();
    let file = dir.join("series");
    let text =
        fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
    let mut patches = Vec::new();
    for line in text.lines() {
        let Some(name) = line.split('#').next().and_then(|l| l.split_whitespace().next()) else {
            continue;
        };
        let patch = dir.join(name);
        if !patch.is_file() {
            bail!("{} names {name}, which is not there", paths::shown(&file));
        }
        patches.push(patch);
    }
    for entry in fs::read_dir(&dir)? {
        let path = entry?.path();
        if path.extension().is_some_and(|e| e == "patch") && !patches.contains(&path) {
            bail!("{} is not in {}", paths::shown(&path), paths::shown(&file));
        }
    }
    Ok(patches)
}

/// Applies the queue to the tree `xen`, with no fuzz.
pub fn apply(step: &mut Step, xen: &Path) -> Result<()> {
    for patch in series()? {
        let name = patch.file_name().unwrap_or_default().to_string_lossy().into_owned();
        step.run(
            &Cmd::new("patch")
                .args(["-p1", "--forward", "--fuzz=0", "--no-backup-if-mismatch", "-i"])
                .arg(&patch)
                .dir(xen),
        )
        .with_context(|| format!("{name} does not apply to this Xen"))?;
    }
    Ok(())
}

/// What a patch of the queue must have: a subject, a reason, a sign-off.
///
/// # Errors
/// Names the first patch that lacks one of them.
pub fn check_messages() -> Result<usize> {
    let patches = series()?;
    for patch in &patches {
        let text = fs::read_to_string(patch)
            .with_context(|| format!("cannot read {}", patch.display()))?;
        if let Some(lack) = lacks(&text) {
            bail!("{} has no {lack}", paths::shown(patch));
        }
    }
    Ok(patches.len())
}

/// What the message of the patch `text` lacks.
fn lacks(text: &str) -> Option<&'static str> {
    let message = text.split("\n---\n").next().unwrap_or("");
    let (head, body) = message.split_once("\n\n").unwrap_or((message, ""));
    let reason: usize =
        body.lines().filter(|l| !l.starts_with("Signed-off-by:")).map(|l| l.trim().len()).sum();
    if !head.lines().any(|l| l.starts_with("Subject: ")) {
        Some("subject")
    } else if reason < 40 {
        Some("reason in its message")
    } else if !body.lines().any(|l| l.starts_with("Signed-off-by: ")) {
        Some("sign-off")
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_needs_a_subject_a_reason_and_a_sign_off() {
        let good = "From: A <a@example>\nSubject: [PATCH] x\n\nBecause without this the clock would jump.\n\nSigned-off-by: A <a@example>\n---\n file | 1 +\n";
        assert_eq!(lacks(good), None);
        assert_eq!(lacks(&good.replace("Subject", "Object")), Some("subject"));
        assert_eq!(lacks(&good.replace("Signed-off-by: A <a@example>\n", "")), Some("sign-off"));
        assert_eq!(
            lacks(&good.replace("Because without this the clock would jump.", "")),
            Some("reason in its message")
        );
    }
}
