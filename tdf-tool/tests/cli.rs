// SPDX-License-Identifier: MIT OR Apache-2.0
//! The command as a user types it, on a machine without Xen: what it refuses, how, and that it
//! refuses it before it asks for a hypervisor.

use std::path::{Path, PathBuf};
use std::process::Command;

/// Exit code and standard error of `tdf args…`; there must be nothing on standard output.
fn tdf(args: &[&str]) -> (Option<i32>, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_tdf")).args(args).output().expect("it starts");
    assert_eq!(String::from_utf8_lossy(&output.stdout), "", "{args:?}");
    (output.status.code(), String::from_utf8(output.stderr).expect("text"))
}

fn file(name: &str, text: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    std::fs::write(&path, text).expect("a file");
    path
}

#[test]
fn a_factor_that_is_none_is_wrong_usage() {
    for (wrong, why) in [
        ("0", "between"),
        ("-3", "is written"),
        ("abc", "is written"),
        ("1e9", "is written"),
        ("1/0", "between"),
        ("5000", "between"),
    ] {
        for args in [vec!["set", "web", wrong], vec!["run", "clocks", "--tdf", wrong]] {
            let (code, error) = tdf(&args);
            assert_eq!(code, Some(2), "{args:?}");
            assert!(error.contains(&format!("'{wrong}'")) && error.contains(why), "{error}");
        }
    }
}

#[test]
fn what_is_no_verb_or_argument_is_wrong_usage() {
    let config = file("usage.cfg", "name = 'a'");
    let config = config.to_str().unwrap();
    for args in [&["fly"][..], &["get"], &["run"], &["create", config, "-c"]] {
        assert_eq!(tdf(args).0, Some(2), "{args:?}");
    }
}

#[test]
fn a_wrong_configuration_is_a_failure_with_its_place() {
    let config = file("wrong.cfg", "name = 'a'\n# the factor\ntdf = 2.5\n");
    let config = config.to_str().unwrap();
    let (code, error) = tdf(&["create", config]);
    assert_eq!(code, Some(1));
    assert!(error.starts_with(&format!("tdf: {config}:3: tdf = 2.5: ")), "{error}");
    assert_eq!(error.lines().count(), 1, "{error}");
    assert_eq!(tdf(&["create", "/nowhere/a.cfg"]).0, Some(1));
}

#[test]
fn a_wrong_scenario_is_a_failure_with_its_mistakes() {
    let scenario = file("wrong.toml", "name = 'a'\n[[domain]]\nname = 'x'\nkind = 'guest'\n");
    let (code, error) = tdf(&["run", scenario.to_str().unwrap()]);
    assert_eq!(code, Some(1));
    assert!(error.contains("needs tdf") && error.contains("no [[check]]"), "{error}");
}

#[test]
fn without_xen_one_sentence_says_so() {
    if Path::new("/dev/xen/privcmd").exists() {
        return;
    }
    let good = file("good.cfg", "name = 'a'\ntdf = '10'\non_reboot = 'destroy'\n");
    for args in [
        &["list"][..],
        &["get", "web"],
        &["set", "web", "2.5"],
        &["create", good.to_str().unwrap()],
    ] {
        let (code, error) = tdf(args);
        assert_eq!((code, error.lines().count()), (Some(1), 1), "{error}");
        assert!(error.contains("/dev/xen/privcmd"), "{error}");
    }
}
