// SPDX-License-Identifier: MIT OR Apache-2.0
//! Mutation testing of the patch queue: with a hook taken out, the row that tests it must turn red.
//!
//! A test that stays green without the code that it tests is none. `hypervisor-patch/mutations.toml`
//! lists the hooks; each is taken out of a copy of the patched tree, alone, and the scenario `paths`
//! (or the one that the hook names) is run on what that gives. Before, the scenario must pass on the
//! whole tree: a row that is red with the hook in its place notices nothing.
//!
//! PV Linux domains are left out. With some of the hooks gone Linux spins at boot, for as long as one waits
//! for it; every row is one of our kernel's, too, which knows that time may be wrong and goes on.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;
use serde_json::Value;
use tdf_abi::Tdf;

use crate::apt::Base;
use crate::exec::{Cmd, Step, write_atomic};
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
    /// What the lab says instead of showing the row in red: a domain dies before it can try that path, or the
    /// scenario is a script.
    says: Option<String>,
}

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

/// What a lab that failed shows.
#[derive(Default)]
struct Found {
    /// The paths of rows that failed, and the clocks that did.
    red: BTreeSet<String>,
    /// Its whole table.
    text: String,
}

impl Found {
    fn of(outcome: &lab::Outcome) -> Self {
        // What is red, and what stands there, means nothing in a lab that passed.
        match outcome.pass {
            true => Self::default(),
            false => Self { red: red_rows(&outcome.document), text: outcome.table.clone() },
        }
    }

    /// Whether it is what `mutation` is to bring about.
    fn notices(&self, mutation: &Mutation) -> bool {
        match &mutation.says {
            Some(says) => self.text.contains(says),
            None => self.red.contains(&mutation.path),
        }
    }

    /// What there is to see of it: the rows, or what is said instead.
    fn shown(&self, mutation: &Mutation) -> String {
        let rows = self.red.iter().map(String::as_str);
        let says = mutation.says.as_deref().filter(|says| self.text.contains(says));
        rows.chain(says).collect::<Vec<_>>().join(" ")
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
    let chosen: Vec<&Mutation> =
        list.mutation.iter().filter(|m| only.is_empty() || only.contains(&m.path)).collect();
    let options =
        xen::Options { base, source: source.clone(), default_tdf: Tdf::ONE, stock: false };
    let whole = xen::build(&options)?;
    let tree = xen::prepare(&options)?;
    let dir = paths::work().join(base.to_string());
    let lab = |scenario: &str, image: PathBuf| {
        lab::run(&lab::Options {
            xen_source: source.clone(),
            image: Some(image),
            scenario: without_linux(&dir.join("mutate"), scenario)?,
            ..lab::Options::new(base)
        })
    };
    let mutant = dir.join("xen-mutant");
    let mut step = Step::begin(&format!("{base}-mutant"), "mutant tree")?;
    xen::remove(&mutant)?;
    step.run(&Cmd::new("cp").args(["-a", "--"]).arg(&tree).arg(&mutant))?;
    step.done("copied");
    println!(
        "{:5} {:36} {:9} {:44} VERDICT",
        "PATH", "HOOK TAKEN OUT OF", "SCENARIO", "WHAT TURNED RED"
    );
    let (mut passed, mut missed) = (BTreeSet::new(), 0);
    for mutation in &chosen {
        if passed.insert(&mutation.scenario) {
            let outcome = lab(&mutation.scenario, whole.image.clone())?;
            let name = &mutation.scenario;
            ensure!(outcome.pass, "{name} fails with every hook in its place\n{}", outcome.table);
        }
        let file = mutant.join(&mutation.file);
        let text =
            fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
        fs::write(&file, mutation.apply(&text)?)?;
        let built = build(base, mutation, &mutant);
        // The next one's build is to see a file that changed again, whatever became of this.
        fs::write(&file, text)?;
        built?;
        let found = match lab(&mutation.scenario, xen::image(&mutant)) {
            Ok(outcome) => Found::of(&outcome),
            Err(error) => {
                // A lab that comes to no end shows nothing that could be judged.
                eprintln!("{error:#}");
                Found::default()
            }
        };
        let noticed = found.notices(mutation);
        if !noticed {
            missed += 1;
            eprintln!("{}", found.text.trim_end());
        }
        // Each at once: what stops a run that takes an hour leaves what it has found.
        println!(
            "{:5} {:36} {:9} {:44} {}",
            mutation.path,
            mutation.file.display(),
            mutation.scenario,
            found.shown(mutation),
            if noticed { "noticed" } else { "NOT NOTICED" }
        );
    }
    println!("{} hooks taken out, {} noticed", chosen.len(), chosen.len() - missed);
    Ok(missed == 0)
}

/// Builds the tree of which `mutation` took something out.
fn build(base: Base, mutation: &Mutation, mutant: &Path) -> Result<()> {
    let mut step =
        Step::begin(&format!("{base}-mutant"), &format!("Xen without {}", mutation.path))?;
    step.run(&xen::make_image(mutant))?;
    step.done("built");
    Ok(())
}

/// The scenario, as a file in `dir` if it is one of which PV Linux domains had to be taken out.
fn without_linux(dir: &Path, scenario: &str) -> Result<String> {
    let name = format!("{scenario}.toml");
    let Ok(text) = fs::read_to_string(paths::root().join("tdf-tool/scenarios").join(&name)) else {
        // A script.
        return Ok(scenario.to_owned());
    };
    let mut table: toml::Table = toml::from_str(&text).with_context(|| name.clone())?;
    let gone = take_linux_out(&mut table);
    if gone == 0 {
        return Ok(scenario.to_owned());
    }
    let file = dir.join(name);
    write_atomic(&file, toml::to_string(&table)?)?;
    Ok(file.to_str().context("a path is not UTF-8")?.to_owned())
}

/// Takes the domains that run a PV Linux out of the scenario `table`, and out of all lists of domains; returns how
/// many they were.
fn take_linux_out(table: &mut toml::Table) -> usize {
    let mut gone = Vec::new();
    if let Some(domains) = table.get_mut("domain").and_then(toml::Value::as_array_mut) {
        domains.retain(|domain| {
            let linux = domain.get("kind").and_then(toml::Value::as_str) == Some("linux");
            gone.extend(domain.get("name").filter(|_| linux).cloned());
            !linux
        });
    }
    for (section, list) in [("check", "clocks"), ("change", "domains")] {
        let sections = table.get_mut(section).and_then(toml::Value::as_array_mut);
        for section in sections.into_iter().flatten() {
            if let Some(names) = section.get_mut(list).and_then(toml::Value::as_array_mut) {
                names.retain(|name| !gone.contains(name));
            }
        }
    }
    gone.len()
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

    fn mutation(says: Option<&str>) -> Mutation {
        Mutation {
            path: "P8".into(),
            file: "a.c".into(),
            from: "tdf_now(d)".into(),
            to: "NOW()".into(),
            scenario: paths_scenario(),
            says: says.map(str::to_owned),
        }
    }

    fn outcome(pass: bool) -> lab::Outcome {
        lab::Outcome {
            pass,
            table: "bitten: it died".to_owned(),
            document: serde_json::json!({ "domains": [{ "paths": [
                { "path": "P1", "pass": true }, { "path": "P8", "pass": false }, { "path": "P9" } ],
                "clocks": [{ "name": "tsc", "pass": false }] }] }),
            console: PathBuf::new(),
        }
    }

    #[test]
    fn a_hook_is_taken_out_once_or_not_at_all() {
        let mutation = mutation(None);
        assert_eq!(mutation.apply("x = tdf_now(d);").unwrap(), "x = NOW();");
        assert!(mutation.apply("x = 1;").is_err());
        assert!(mutation.apply("tdf_now(d) tdf_now(d)").is_err());
    }

    #[test]
    fn red_rows_are_those_that_do_not_pass() {
        let red: Vec<_> = red_rows(&outcome(false).document).into_iter().collect();
        assert_eq!(red, ["P8", "P9", "tsc"]);
    }

    #[test]
    fn a_hook_is_noticed_by_its_own_row_or_by_what_it_is_to_bring_about() {
        let found = Found::of(&outcome(false));
        assert!(found.notices(&mutation(None)));
        assert!(!found.notices(&Mutation { path: "P1".into(), ..mutation(None) }));
        assert!(found.notices(&mutation(Some("it died"))));
        assert!(!found.notices(&mutation(Some("it lives"))));
        assert_eq!(found.shown(&mutation(Some("it died"))), "P8 P9 tsc it died");
        // A lab that passed, and one that came to no end.
        for found in [Found::of(&outcome(true)), Found::default()] {
            assert!(!found.notices(&mutation(None)) && !found.notices(&mutation(Some("it died"))));
        }
    }

    #[test]
    fn linux_is_taken_out_of_the_domains_and_of_what_names_them() {
        let mut table: toml::Table = toml::from_str(
            "[[domain]]\nname = \"a\"\nkind = \"guest\"\n[[domain]]\nname = \"b\"\nkind = \"linux\"\n\
             [[check]]\nclocks = [\"a\", \"b\"]\n[[change]]\ndomains = [\"b\"]\ncount = 3\n",
        )
        .unwrap();
        assert_eq!(take_linux_out(&mut table), 1);
        assert_eq!(table["domain"].as_array().unwrap().len(), 1);
        assert_eq!(table["check"][0]["clocks"].as_array().unwrap(), &["a".into()]);
        assert!(table["change"][0]["domains"].as_array().unwrap().is_empty());
        assert_eq!(take_linux_out(&mut table), 0);
    }
}
