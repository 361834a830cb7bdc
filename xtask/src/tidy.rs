// SPDX-License-Identifier: MIT OR Apache-2.0
//! What no compiler checks: licence lines, host paths, stray white space, dependencies' licences.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::exec::Cmd;
use crate::guest::cargo;
use crate::paths;

/// Licences of which a dependency must offer at least one. All may be combined with ours and with
/// the MIT arm of it with Xen's; GPL-3.0 may not.
const LICENCES: &[&str] = &[
    "0BSD",
    "Apache-2.0",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "ISC",
    "MIT",
    "Unicode-3.0",
    "Unlicense",
    "Zlib",
    "CC0-1.0",
    "NCSA",
];

/// Checks every file that git knows, and every dependency.
///
/// # Errors
/// Lists all that is wrong.
pub fn run() -> Result<()> {
    let git = Cmd::new("git").args(["ls-files", "-z"]).dir(paths::root());
    let output = git.command().output().context("cannot start git")?;
    let names = String::from_utf8(output.stdout).context("a file's name is not UTF-8")?;
    let home = std::env::var("HOME").unwrap_or_default();
    let hosts = [paths::root().display().to_string(), format!("{home}/")];
    let mut faults = Vec::new();
    let mut files = 0;
    for name in names.split('\0').filter(|n| !n.is_empty()) {
        let Ok(text) = fs::read_to_string(paths::root().join(name)) else { continue };
        files += 1;
        faults.extend(file_faults(name, &text, &hosts).into_iter().map(|f| format!("{name}: {f}")));
    }
    if files == 0 {
        bail!("git names no file in {}", paths::root().display());
    }
    let packages = dependencies()?;
    for (name, licence) in &packages {
        if !permitted(licence) {
            faults.push(format!("the dependency {name} has the licence {licence:?}"));
        }
    }
    if !faults.is_empty() {
        bail!("{}", faults.join("\n"));
    }
    println!("{files} files and {} dependencies are tidy", packages.len());
    Ok(())
}

/// Whether files of this kind begin with a licence line. Patches are licensed as what they patch.
fn wants_licence(name: &str) -> bool {
    let kind = Path::new(name).extension().and_then(|e| e.to_str()).unwrap_or("");
    ["rs", "toml", "sh", "ld", "cfg", "c", "h", "config"].contains(&kind)
}

fn file_faults(name: &str, text: &str, hosts: &[String]) -> Vec<String> {
    let mut faults = Vec::new();
    if wants_licence(name) && !text.lines().take(3).any(|l| l.contains("SPDX-License-Identifier:"))
    {
        faults.push("no SPDX licence line at its beginning".to_owned());
    }
    for host in hosts.iter().filter(|h| h.len() > 1) {
        if text.contains(host.as_str()) {
            faults.push(format!("it contains a path of this machine, {host}"));
        }
    }
    if !name.ends_with(".patch") {
        for (number, line) in text.lines().enumerate() {
            if line != line.trim_end() {
                faults.push(format!("white space at the end of line {}", number + 1));
            }
        }
        if !text.is_empty() && !text.ends_with('\n') {
            faults.push("no newline at its end".to_owned());
        }
    }
    faults
}

/// Names and licences of everything that `Cargo.lock` names.
fn dependencies() -> Result<Vec<(String, String)>> {
    let metadata = cargo().args(["metadata", "--locked", "--format-version", "1"]);
    let output = metadata.command().output().context("cannot start cargo")?;
    if !output.status.success() {
        bail!("cargo metadata: {}", String::from_utf8_lossy(&output.stderr));
    }
    let metadata: Value = serde_json::from_slice(&output.stdout)?;
    let packages = metadata["packages"].as_array().context("cargo metadata names no packages")?;
    let text = |p: &Value, key: &str| p[key].as_str().unwrap_or("").to_owned();
    Ok(packages.iter().map(|p| (text(p, "name"), text(p, "license"))).collect())
}

/// Whether a licence expression can be met with what we may use.
fn permitted(expression: &str) -> bool {
    // `AND` binds closer than `OR`; the old `/` means `OR`. Brackets: every part must do.
    let met = |part: &str| {
        let name = part.split(" WITH ").next().unwrap_or("").trim();
        LICENCES.contains(&name)
    };
    if expression.contains('(') {
        let words = expression.replace(['(', ')'], "");
        return words.split(" AND ").all(|part| part.split(" OR ").any(met));
    }
    expression.replace('/', " OR ").split(" OR ").any(|choice| choice.split(" AND ").all(met))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn licences_are_read_as_expressions() {
        for good in [
            "MIT",
            "MIT/Apache-2.0",
            "GPL-2.0 OR MIT",
            "(MIT OR Apache-2.0) AND Unicode-3.0",
            "Apache-2.0 WITH LLVM-exception OR MIT",
        ] {
            assert!(permitted(good), "{good}");
        }
        for bad in ["", "GPL-3.0-only", "MIT AND GPL-3.0-only", "(MIT OR ISC) AND GPL-3.0-only"] {
            assert!(!permitted(bad), "{bad}");
        }
    }

    #[test]
    fn each_fault_of_a_file_is_named() {
        let hosts = ["/some/home/".to_owned()];
        let faults = |name: &str, text: &str| file_faults(name, text, &hosts).len();
        assert_eq!(faults("a.rs", "// SPDX-License-Identifier: MIT\nx\n"), 0);
        assert_eq!(faults("a.rs", "x\n"), 1);
        assert_eq!(faults("a.md", "x\n"), 0);
        assert_eq!(faults("a.md", "x \n"), 1);
        assert_eq!(faults("a.md", "in /some/home/dir\n"), 1);
        assert_eq!(faults("a.md", "x"), 1);
    }
}
