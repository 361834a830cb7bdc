// SPDX-License-Identifier: MIT OR Apache-2.0
//! The patch queue against a Xen tree.
//!
//! The order is the same for every version of Xen. Where a version needs other lines than the rest,
//! the folder that is named after it holds a patch of the same name, which replaces the common one.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use crate::exec::{Cmd, Step};
use crate::paths;
use crate::stamp::Inputs;

/// The folder of the queue.
pub fn folder() -> PathBuf {
    paths::root().join("hypervisor-patch/patches")
}

/// What `hypervisor-patch/base.toml` says about the queue.
#[derive(Deserialize)]
struct Known {
    /// Versions of Xen, as `major.minor`, to which it is known to apply.
    versions: Vec<String>,
}

impl Known {
    fn read() -> Result<Self> {
        let file = paths::root().join("hypervisor-patch/base.toml");
        let text =
            fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
        toml::from_str(&text).with_context(|| format!("cannot understand {}", file.display()))
    }

    /// Refuses a version that nothing is known of.
    fn check(&self, version: &str) -> Result<()> {
        if self.versions.iter().any(|v| v == version) {
            return Ok(());
        }
        bail!(
            "the patch queue is not known to apply to Xen {version}, only to {}",
            self.versions.join(", ")
        );
    }
}

/// The version of the Xen tree `tree` as the queue tells versions apart: `major.minor`.
///
/// # Errors
/// The tree's makefile cannot be read, or states no version.
pub fn version(tree: &Path) -> Result<String> {
    let makefile = tree.join("xen/Makefile");
    let text = fs::read_to_string(&makefile)
        .with_context(|| format!("cannot read {}", makefile.display()))?;
    match (variable(&text, "XEN_VERSION"), variable(&text, "XEN_SUBVERSION")) {
        (Some(major), Some(minor)) => Ok(format!("{major}.{minor}")),
        _ => bail!("{} states no version", makefile.display()),
    }
}

/// What the makefile `text` sets the variable `name` to.
pub fn variable(text: &str, name: &str) -> Option<String> {
    text.lines().find_map(|line| {
        let (left, right) = line.split_once('=')?;
        let left = left.trim_start_matches("export ").trim_end_matches([' ', '\t', ':', '?']);
        (left == name).then(|| right.trim().to_owned())
    })
}

/// The names of the patches in `queue`, in the order of its `series`.
fn names(queue: &Path) -> Result<Vec<String>> {
    let file = queue.join("series");
    let text =
        fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
    let words = text.lines().filter_map(|l| l.split('#').next()?.split_whitespace().next());
    Ok(words.map(str::to_owned).collect())
}

/// The patches of `queue` for Xen `version`, in order: each one's variant, or else the common one.
fn series(queue: &Path, version: &str) -> Result<Vec<PathBuf>> {
    let mut patches = Vec::new();
    for name in names(queue)? {
        let places = [queue.join(version).join(&name), queue.join(&name)];
        match places.into_iter().find(|p| p.is_file()) {
            Some(patch) => patches.push(patch),
            None => bail!("{} names {name}, which is not there", shown_series(queue)),
        }
    }
    Ok(patches)
}

fn shown_series(queue: &Path) -> String {
    paths::shown(&queue.join("series"))
}

/// Every patch of `queue`, variants included.
///
/// # Errors
/// There is one that `series` does not name, or a folder of no version in `known`.
fn all(queue: &Path, known: &Known) -> Result<Vec<PathBuf>> {
    let names = names(queue)?;
    let mut folders = vec![queue.to_owned()];
    let mut patches = Vec::new();
    for entry in sorted(queue)? {
        let folder = entry.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if entry.is_dir() {
            known.check(&folder).with_context(|| paths::shown(&entry))?;
            folders.push(entry);
        }
    }
    for folder in folders {
        for path in
            sorted(&folder)?.into_iter().filter(|p| p.extension().is_some_and(|e| e == "patch"))
        {
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if !names.contains(&name) {
                bail!("{} is not in {}", paths::shown(&path), shown_series(queue));
            }
            patches.push(path);
        }
    }
    Ok(patches)
}

fn sorted(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut paths = fs::read_dir(dir)
        .with_context(|| format!("cannot read {}", dir.display()))?
        .map(|e| Ok(e?.path()))
        .collect::<Result<Vec<_>>>()?;
    paths.sort();
    Ok(paths)
}

/// What a tree of Xen `version` with the queue depends on: the patches for it, and their order.
///
/// # Errors
/// A patch cannot be read.
pub fn inputs(version: &str) -> Result<Inputs> {
    series(&folder(), version)?.iter().try_fold(Inputs::new(), |inputs, patch| {
        inputs.text(&patch.file_name().unwrap_or_default().to_string_lossy()).file(patch)
    })
}

/// The version of the tree `xen`, if the queue is known to apply to it.
///
/// # Errors
/// It is not, or the tree states no version.
pub fn known_version(xen: &Path) -> Result<String> {
    let version = version(xen)?;
    Known::read()?.check(&version)?;
    Ok(version)
}

/// Applies the queue to the tree `xen`, with no fuzz; returns how many patches, and how many of
/// them are variants for its version.
///
/// # Errors
/// Nothing is known of the tree's version, or a patch does not apply.
pub fn apply(step: &mut Step, xen: &Path) -> Result<(usize, usize)> {
    let patches = for_tree(xen)?;
    for patch in &patches {
        apply_one(step, xen, patch)?;
    }
    Ok((patches.len(), patches.iter().filter(|p| p.parent() != Some(&folder())).count()))
}

/// The patches for the tree `xen`, in order.
///
/// # Errors
/// Nothing is known of the tree's version.
pub fn for_tree(xen: &Path) -> Result<Vec<PathBuf>> {
    series(&folder(), &known_version(xen)?)
}

/// Applies one patch to the tree `xen`, with no fuzz.
///
/// # Errors
/// It does not apply.
pub fn apply_one(step: &mut Step, xen: &Path, patch: &Path) -> Result<()> {
    step.run(
        &Cmd::new("patch")
            .args(["-p1", "--forward", "--fuzz=0", "--no-backup-if-mismatch", "-i"])
            .arg(patch)
            .dir(xen),
    )
    .with_context(|| format!("{} does not apply to this Xen", paths::shown(patch)))
}

/// What every patch of the queue, for whichever version, must have: a subject, a reason, a sign-off,
/// and lines in Xen's style.
///
/// # Errors
/// Names the first patch that lacks one of them, or all that is against the style.
pub fn check_patches() -> Result<usize> {
    let patches = all(&folder(), &Known::read()?)?;
    let mut faults = Vec::new();
    for patch in &patches {
        let text = fs::read_to_string(patch)
            .with_context(|| format!("cannot read {}", patch.display()))?;
        if let Some(lack) = lacks(&text) {
            bail!("{} has no {lack}", paths::shown(patch));
        }
        faults.extend(style(&text).map(|fault| format!("{}: {fault}", paths::shown(patch))));
    }
    if !faults.is_empty() {
        bail!("{} lines are not in Xen's style\n{}", faults.len(), faults.join("\n"));
    }
    Ok(patches.len())
}

/// Longest line, and longest line of a commit message that Xen's maintainers like to see.
const COLUMNS: usize = 79;

/// What is wrong with the lines that the patch `text` adds, by Xen's `CODING_STYLE` as far as that can
/// be told from one line: each with its file.
fn style(text: &str) -> impl Iterator<Item = String> {
    let (message, diff) = text.split_once("\n---\n").unwrap_or((text, ""));
    let body = message.split_once("\n\n").map_or("", |(_, body)| body);
    let prose = body.lines().filter(|line| !line.contains("-by: "));
    let long = prose.filter(|line| line.chars().count() > COLUMNS);
    let mut faults: Vec<String> = long.map(|line| format!("message: too long: {line}")).collect();
    let mut file = "";
    for line in diff.lines() {
        if let Some(name) = line.strip_prefix("+++ b/") {
            file = name;
        } else if let Some(added) = line.strip_prefix('+') {
            let of_c = [".c", ".h"].iter().any(|end| file.ends_with(end));
            let wrong = if added.ends_with([' ', '\t']) {
                Some("white space at the end")
            } else if of_c {
                style_of_c(added)
            } else {
                None
            };
            faults.extend(wrong.map(|wrong| format!("{file}: {wrong}: {added}")));
        }
    }
    faults.into_iter()
}

/// What is wrong with a line of C.
fn style_of_c(line: &str) -> Option<&'static str> {
    let code = line.trim();
    let mut words = code.split([' ', '(', ';']).filter(|word| *word != "else" && *word != "}");
    let head = words.next().unwrap_or("");
    let control = ["if", "for", "while", "switch"].contains(&head);
    let condition = code.split_once(head).map_or("", |(_, rest)| rest);
    let depth = |c| condition.matches(c).count();
    if line.contains('\t') {
        Some("a tab")
    } else if line.chars().count() > COLUMNS && !line.contains('"') {
        // What users see and may search for is not broken.
        Some("longer than 79 columns")
    } else if code.starts_with("//") || code.contains("; //") {
        Some("a comment that is not /* */")
    } else if control && !(condition.starts_with(" ( ") || condition.starts_with(" (;")) {
        Some("no spaces around and inside the parentheses")
    } else if control && depth('(') == depth(')') && code.ends_with(')') && !code.ends_with(" )") {
        Some("no space before the closing parenthesis")
    } else if (control || code.starts_with("else") || code.starts_with("} else"))
        && code.ends_with('{')
    {
        Some("a brace that is not on a line of its own")
    } else {
        None
    }
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

    fn queue(files: &[&str]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for file in files {
            let path = dir.path().join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, *file).unwrap();
        }
        dir
    }

    #[test]
    fn a_variant_replaces_the_common_patch_for_its_version_only() {
        let dir = queue(&["0001-a.patch", "0002-b.patch", "4.20/0002-b.patch"]);
        fs::write(dir.path().join("series"), "# order\n0001-a.patch\n0002-b.patch\n").unwrap();
        let names = |version| {
            let patches = series(dir.path(), version).unwrap();
            patches.iter().map(|p| fs::read_to_string(p).unwrap()).collect::<Vec<_>>()
        };
        assert_eq!(names("4.17"), ["0001-a.patch", "0002-b.patch"]);
        assert_eq!(names("4.20"), ["0001-a.patch", "4.20/0002-b.patch"]);
    }

    #[test]
    fn a_patch_that_has_no_place_in_the_series_is_refused_whichever_version_it_is_for() {
        let known = || Known { versions: vec!["4.17".into(), "4.20".into()] };
        let dir = queue(&["0001-a.patch", "4.20/0001-a.patch", "4.20/0002-b.patch"]);
        fs::write(dir.path().join("series"), "0001-a.patch\n").unwrap();
        let error = all(dir.path(), &known()).unwrap_err().to_string();
        assert!(error.contains("4.20/0002-b.patch"), "{error}");
        fs::remove_file(dir.path().join("4.20/0002-b.patch")).unwrap();
        assert_eq!(all(dir.path(), &known()).unwrap().len(), 2);
        fs::create_dir(dir.path().join("4.2")).unwrap();
        let error = format!("{:#}", all(dir.path(), &known()).unwrap_err());
        assert!(error.contains("not known to apply to Xen 4.2,"), "{error}");
        fs::write(dir.path().join("series"), "0003-c.patch\n").unwrap();
        let error = series(dir.path(), "4.20").unwrap_err().to_string();
        assert!(error.contains("0003-c.patch"), "{error}");
    }

    #[test]
    fn a_version_of_which_nothing_is_known_is_refused_with_those_that_are() {
        let known = Known { versions: vec!["4.17".into(), "4.20".into()] };
        for version in &known.versions {
            known.check(version).unwrap();
        }
        for version in ["4.2", "4.19", "4.200", "5.17", ""] {
            let error = known.check(version).unwrap_err().to_string();
            assert!(error.contains(&format!("Xen {version},")), "{error}");
            assert!(error.ends_with("only to 4.17, 4.20"), "{error}");
        }
    }

    #[test]
    fn the_version_is_the_one_that_the_makefile_sets() {
        let old = "# note\nexport XEN_VERSION       = 4\nexport XEN_SUBVERSION    = 17\n";
        let new = "XEN_VERSION := 4\nexport XEN_SUBVERSION=20\nX = $(XEN_VERSION)=1\n";
        for (text, minor) in [(old, "17"), (new, "20")] {
            assert_eq!(variable(text, "XEN_VERSION").as_deref(), Some("4"));
            assert_eq!(variable(text, "XEN_SUBVERSION").as_deref(), Some(minor));
            assert_eq!(variable(text, "SUBVERSION"), None);
        }
    }

    #[test]
    fn every_patch_of_the_queue_is_complete_and_has_its_place() {
        let known = Known::read().unwrap();
        assert!(check_patches().unwrap() >= names(&folder()).unwrap().len());
        for version in &known.versions {
            assert!(!series(&folder(), version).unwrap().is_empty());
        }
    }

    #[test]
    fn lines_of_c_are_held_to_xens_style() {
        for good in [
            "    if ( a && (b || c) )",
            "    else if ( a )",
            "    for ( ; ; )",
            "    for ( i = 0; i < n; i++ )",
            "    do {",
            "    } while ( x );",
            "    while ( likely(x) &&",
            "    return f(x) ? y : z;",
            "        switched = iffy(x);",
            "    x = (struct y){",
            "    printk(\"a text that is longer than anything else that stands in any of these files here\\n\");",
        ] {
            assert_eq!(style_of_c(good), None, "{good}");
        }
        for bad in [
            "\tx = 1;",
            "    if (a)",
            "    if( a )",
            "    if ( f(a))",
            "    if ( a ) {",
            "    else {",
            "    } else {",
            "    x = 1; // why",
            "    while (x)",
            "    } while (x);",
            "    very_long_name_of_a_function(with, more, arguments, than, fit, on, one, line, x);",
        ] {
            assert!(style_of_c(bad).is_some(), "{bad}");
        }
    }

    #[test]
    fn only_what_a_patch_adds_must_be_in_style() {
        let patch =
            "Subject: x\n\nWhy.\n---\n--- a/b.c\n+++ b/b.c\n@@ -1 +1 @@\n if (a)\n-while(b)\n";
        assert_eq!(style(patch).count(), 0);
        assert_eq!(style(&format!("{patch}+if (c)\n+x; \n")).count(), 2);
        assert_eq!(style(&patch.replace("b.c", "b.py")).count(), 0);
        assert_eq!(style(&format!("{patch}+++ b/Kconfig\n+\ttab\n")).count(), 0);
        assert_eq!(style(&patch.replace("Why.", &"Why ".repeat(21))).count(), 1);
    }

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
