// SPDX-License-Identifier: MIT OR Apache-2.0
//! Mutation testing of the patch queue: with a hook taken out, the row that tests it must turn red.
//!
//! A test that stays green without the code that it tests is none. `hypervisor-patch/mutations.toml`
//! lists the hooks; each is taken out of a copy of the patched tree, alone, and the scenario `paths`
//! (or the one that the hook names) is run on what that gives.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;
use serde_json::Value;
use tdf_abi::Tdf;

use crate::apt::Base;
use crate::exec::{Cmd, Step};
use crate::lab;
use crate::paths;
use crate::xen;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Mutations {
    mutation: Vec<Mutation>,
}

/// One hook, and how to take it out.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Mutation {
    /// The row of the path table that must turn red.
    path: String,
    /// The file, below the tree's top folder.
    file: PathBuf,
    /// Text of the patched file …
    from: String,
    /// … and what stands there instead.
    to: String,
    /// The scenario that must notice.
    #[serde(default = "paths_scenario")]
    scenario: String,
    /// No row turns red: a domain dies before it can show one, or the scenario is a script.
    #[serde(default)]
    rowless: bool,
}

/// What stands for the rows of a lab that failed and showed none in red.
const NO_ROW: &str = "(no row)";

fn paths_scenario() -> String {
    "paths".to_owned()
}

impl Mutation {
    /// The file's text without the hook.
    fn apply(&self, text: &str) -> Result<String> {
        let count = text.matches(&self.from).count();
        ensure!(count == 1, "{}: {} occurs {count} times, not once", self.path, self.from);
        Ok(text.replacen(&self.from, &self.to, 1))
    }
}

/// Tries every mutation, or those of the paths in `only`; true if all were noticed.
///
/// # Errors
/// The list is wrong, or a mutant could not be built or booted.
pub fn run(base: Base, source: Option<PathBuf>, only: &[String]) -> Result<bool> {
    let file = paths::root().join("hypervisor-patch/mutations.toml");
    let text =
        fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
    let list: Mutations =
        toml::from_str(&text).with_context(|| format!("{} is wrong", paths::shown(&file)))?;
    if let Some(unknown) = only.iter().find(|&p| list.mutation.iter().all(|m| m.path != *p)) {
        bail!("{} lists no hook of {unknown}", paths::shown(&file));
    }
    let options =
        xen::Options { base, source: source.clone(), default_tdf: Tdf::ONE, stock: false };
    xen::build(&options)?;
    let tree = xen::prepare(&options)?;
    let mutant = paths::work().join(base.to_string()).join("xen-mutant");
    let mut step = Step::begin(&format!("{base}-mutant"), "mutant tree")?;
    xen::remove(&mutant)?;
    step.run(&Cmd::new("cp").args(["-a", "--"]).arg(&tree).arg(&mutant))?;
    step.done("copied");
    let mut lines = Vec::new();
    let mut all = true;
    for mutation in list.mutation.iter().filter(|m| only.is_empty() || only.contains(&m.path)) {
        let red = try_one(base, source.clone(), mutation, &mutant)?;
        let sign = if mutation.rowless { NO_ROW } else { &mutation.path };
        let noticed = red.contains(sign);
        all &= noticed;
        let red: Vec<&str> = red.iter().map(String::as_str).collect();
        lines.push(format!(
            "{:8} {:48} {:40} {}",
            mutation.path,
            mutation.file.display(),
            red.join(" "),
            if noticed { "noticed" } else { "NOT NOTICED" }
        ));
    }
    println!("{:8} {:48} {:40} VERDICT", "PATH", "HOOK TAKEN OUT OF", "ROWS THAT TURN RED");
    lines.iter().for_each(|line| println!("{line}"));
    Ok(all)
}

/// The rows that are red without the hook.
fn try_one(
    base: Base,
    source: Option<PathBuf>,
    mutation: &Mutation,
    mutant: &Path,
) -> Result<BTreeSet<String>> {
    let file = mutant.join(&mutation.file);
    let whole =
        fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
    fs::write(&file, mutation.apply(&whole)?)?;
    let result = (|| {
        let mut step =
            Step::begin(&format!("{base}-mutant"), &format!("Xen without {}", mutation.path))?;
        step.run(&xen::make_image(mutant))?;
        step.done("built");
        lab::run(&lab::Options {
            xen_source: source,
            image: Some(xen::image(mutant)),
            scenario: mutation.scenario.clone(),
            ..lab::Options::new(base)
        })
    })();
    fs::write(&file, whole)?;
    match result {
        Ok(outcome) => {
            let mut red = red_rows(&outcome.document);
            if red.is_empty() && !outcome.pass {
                red.insert(NO_ROW.to_owned());
            }
            Ok(red)
        }
        // A machine that does not even end has noticed, too; which row it was is not known.
        Err(error) => {
            eprintln!("{error:#}");
            Ok(BTreeSet::from(["no verdict".to_owned()]))
        }
    }
}

/// The paths of rows that failed, and the clocks that did.
fn red_rows(document: &Value) -> BTreeSet<String> {
    let mut red = BTreeSet::new();
    for domain in document["domains"].as_array().into_iter().flatten() {
        for (list, key) in [("paths", "path"), ("clocks", "name")] {
            for row in domain[list].as_array().into_iter().flatten() {
                if row["pass"] != Value::Bool(true) {
                    red.extend(row[key].as_str().map(str::to_owned));
                }
            }
        }
    }
    red
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hook_is_taken_out_once_or_not_at_all() {
        let mutation = Mutation {
            path: "P8".into(),
            file: "a.c".into(),
            from: "tdf_now(d)".into(),
            to: "NOW()".into(),
            scenario: paths_scenario(),
            rowless: false,
        };
        assert_eq!(mutation.apply("x = tdf_now(d);").unwrap(), "x = NOW();");
        assert!(mutation.apply("x = 1;").is_err());
        assert!(mutation.apply("tdf_now(d) tdf_now(d)").is_err());
    }

    #[test]
    fn red_rows_are_those_that_do_not_pass() {
        let document = serde_json::json!({ "domains": [{ "paths": [
            { "path": "P1", "pass": true }, { "path": "P8", "pass": false }, { "path": "P9" } ],
            "clocks": [{ "name": "tsc", "pass": false }] }] });
        let red: Vec<_> = red_rows(&document).into_iter().collect();
        assert_eq!(red, ["P8", "P9", "tsc"]);
    }
}
