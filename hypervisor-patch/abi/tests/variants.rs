// SPDX-License-Identifier: MIT OR Apache-2.0
//! The queue's variants for single versions of Xen.
//!
//! What the queue does is in files of its own; the rest is hooks, and only hooks may differ from one
//! version of Xen to another. So what is tested of those files holds for every version, and a change
//! that one version's patches did not get is noticed.
#![allow(clippy::unwrap_used, reason = "a test")]

mod common;

use std::collections::BTreeSet;

use common::{added_file, added_file_with, patches, read, series, variants};

/// The files that the queue adds.
fn added() -> BTreeSet<String> {
    let mut files = BTreeSet::new();
    for name in series() {
        let patch = read(&patches().join(name));
        let lines: Vec<&str> = patch.lines().collect();
        for pair in lines.windows(2).filter(|pair| pair[0] == "--- /dev/null") {
            files.insert(pair[1].strip_prefix("+++ b/").unwrap().to_owned());
        }
    }
    files
}

#[test]
fn the_queues_own_files_are_the_same_in_every_version() {
    let files = added();
    for file in ["common/tdf-math.c", "common/tdf.c", "include/public/tdf.h"] {
        assert!(files.contains(&format!("xen/{file}")), "{files:?}");
    }
    assert!(!variants().is_empty());
    for folder in variants() {
        for file in &files {
            let variant = added_file_with(Some(&folder), file);
            assert_eq!(variant, added_file(file), "{}: {file}", folder.display());
        }
    }
}

#[test]
fn a_variant_says_what_the_common_patch_says_about_itself() {
    let subject = |patch: &str| {
        let lines = patch.lines().skip_while(|line| !line.starts_with("Subject: "));
        let subject: Vec<&str> = lines.take_while(|line| !line.is_empty()).collect();
        subject.join("")
    };
    for folder in variants() {
        for name in series() {
            let variant = folder.join(&name);
            if variant.is_file() {
                let (variant, common) = (read(&variant), read(&patches().join(&name)));
                assert_ne!(variant, common, "{name}: a variant that is none");
                assert_eq!(subject(&variant), subject(&common), "{name}");
            }
        }
    }
}
