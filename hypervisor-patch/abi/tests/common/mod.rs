// SPDX-License-Identifier: MIT OR Apache-2.0
//! The C code of the patch queue, as files and as a running program.
//!
//! The tests run the very lines that the patches add to Xen, on a host that has nothing but a C
//! compiler: no Xen tree, no `patch`, no library. What a crash in that code would do to a host is
//! done to a child process here.
#![allow(dead_code, reason = "each test binary uses a part of this module")]

use std::fs;
use std::io::{BufReader, BufWriter, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::thread;

/// Where the patches are.
pub fn patches() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../patches")
}

/// Names of the patches, in the order in which they are applied.
pub fn series() -> Vec<String> {
    read(&patches().join("series"))
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .map(str::to_owned)
        .collect()
}

/// The text of a file, or a panic that names it.
pub fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|e| panic!("cannot read {}: {e}", path.display()))
}

/// The folders of the patches that are made for one version of Xen only.
pub fn variants() -> Vec<PathBuf> {
    let entries = fs::read_dir(patches()).expect("the queue can be read");
    entries.map(|e| e.expect("an entry").path()).filter(|p| p.is_dir()).collect()
}

/// What a file that the queue adds to Xen looks like after the last patch.
pub fn added_file(path: &str) -> String {
    added_file_with(None, path)
}

/// The same, where the patches in the folder `variants` replace those of the same name.
pub fn added_file_with(variants: Option<&Path>, path: &str) -> String {
    let mut lines: Option<Vec<String>> = None;
    for name in series() {
        let variant = variants.map(|folder| folder.join(&name)).filter(|file| file.is_file());
        let patch = read(&variant.unwrap_or_else(|| patches().join(&name)));
        let header = format!("+++ b/{path}");
        let mut rest = patch.lines().skip_while(|line| *line != header).skip(1).peekable();
        while let Some(hunk) = rest.next_if(|line| line.starts_with("@@ ")) {
            let file = lines.get_or_insert_default();
            let (from, old_len, new_len) = hunk_header(hunk);
            let mut at = from;
            let (mut old, mut new) = (0, 0);
            while old < old_len || new < new_len {
                let line = rest.next().unwrap_or_else(|| panic!("{name}: a hunk is cut short"));
                let (kind, text) = line.split_at_checked(1).unwrap_or((" ", ""));
                if kind != "+" {
                    assert_eq!(file.get(at).map(String::as_str), Some(text), "{name}: {path}:{at}");
                    old += 1;
                }
                if kind != "-" {
                    new += 1;
                }
                match kind {
                    "+" => {
                        file.insert(at, text.to_owned());
                        at += 1;
                    }
                    "-" => drop(file.remove(at)),
                    _ => at += 1,
                }
            }
        }
    }
    let lines = lines.unwrap_or_else(|| panic!("no patch adds {path}"));
    lines.join("\n") + "\n"
}

/// `@@ -a,b +c,d @@` as (index of the first line in the patched file, b, d).
fn hunk_header(line: &str) -> (usize, usize, usize) {
    let range = |sign| {
        let word = line.split(' ').find(|word| word.starts_with(sign)).expect("a range");
        let (start, len) = word[1..].split_once(',').unwrap_or((&word[1..], "1"));
        (start.parse::<usize>().expect("a line"), len.parse::<usize>().expect("a length"))
    };
    let ((_, old_len), (start, new_len)) = (range('-'), range('+'));
    (start.saturating_sub(1), old_len, new_len)
}

/// A new, empty folder for one test.
pub fn folder(name: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    if path.exists() {
        fs::remove_dir_all(&path).expect("an old test folder can be removed");
    }
    fs::create_dir_all(&path).expect("a test folder can be made");
    path
}

/// Write `text` to `folder/name`, and make the folders in between.
pub fn put(folder: &Path, name: &str, text: &str) {
    let path = folder.join(name);
    fs::create_dir_all(path.parent().expect("a file has a folder")).expect("a folder can be made");
    fs::write(&path, text).unwrap_or_else(|e| panic!("cannot write {}: {e}", path.display()));
}

/// Xen's headers as far as `tdf-math.c` wants them, with the queue's own headers among them.
pub fn put_math(folder: &Path) {
    put(folder, "xen/types.h", "#include <stdbool.h>\n#include <stdint.h>\n");
    for name in ["xen/tdf-math.h", "public/tdf.h"] {
        put(folder, name, &added_file(&format!("xen/include/{name}")));
    }
    put(folder, "tdf-math.c", &added_file("xen/common/tdf-math.c"));
}

/// Run the C compiler in `folder`; its messages if it refuses.
pub fn cc(folder: &Path, args: &[&str]) -> Result<(), String> {
    let output = Command::new("cc")
        .current_dir(folder)
        .args(["-std=gnu99", "-Wall", "-Werror", "-Wno-unused-function"])
        .args(args)
        .output()
        .expect("these tests need a C compiler that is called `cc`");
    match output.status.success() {
        true => Ok(()),
        false => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
    }
}

/// A program that answers each record of `IN` numbers with one of `OUT` numbers.
pub struct Program<const IN: usize, const OUT: usize> {
    child: Child,
    input: Option<BufWriter<ChildStdin>>,
    output: BufReader<ChildStdout>,
}

impl<const IN: usize, const OUT: usize> Program<IN, OUT> {
    /// Compile `sources` in `folder` so that undefined behaviour traps, and start the result.
    pub fn build(folder: &Path, name: &str, options: &[&str], sources: &[&str]) -> Self {
        let mut args = vec![
            "-O2",
            "-I.",
            "-fsanitize=undefined",
            "-fsanitize-undefined-trap-on-error",
            "-o",
            name,
        ];
        args.extend(options);
        args.extend(sources);
        cc(folder, &args).unwrap_or_else(|messages| panic!("{name} does not compile:\n{messages}"));
        let mut child = Command::new(folder.join(name))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap_or_else(|e| panic!("cannot start {name}: {e}"));
        let input = child.stdin.take().map(BufWriter::new);
        let output = BufReader::new(child.stdout.take().expect("stdout is a pipe"));
        Self { child, input, output }
    }

    /// The answer to one record.
    pub fn call(&mut self, record: [i64; IN]) -> [i64; OUT] {
        let input = self.input.as_mut().expect("stdin is a pipe");
        let sent = send(input, &record).and_then(|()| input.flush());
        match sent.and_then(|()| receive(&mut self.output)) {
            Ok(answer) => answer,
            Err(e) => panic!("the C code died of {record:?}: {e}, {:?}", self.child.wait()),
        }
    }

    /// The answers to many records, each of which may depend on those before. The program ends.
    pub fn calls(mut self, records: &[[i64; IN]]) -> Vec<[i64; OUT]> {
        let mut input = self.input.take().expect("stdin is a pipe");
        thread::scope(|scope| {
            scope.spawn(move || {
                // An error means that the other end has died, which is reported below.
                drop(records.iter().try_for_each(|record| send(&mut input, record)));
            });
            records
                .iter()
                .map(|record| match receive(&mut self.output) {
                    Ok(answer) => answer,
                    Err(e) => panic!("the C code died at {record:?}: {e}, {:?}", self.child.wait()),
                })
                .collect()
        })
    }
}

impl<const IN: usize, const OUT: usize> Drop for Program<IN, OUT> {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

fn send<const N: usize>(to: &mut impl Write, record: &[i64; N]) -> std::io::Result<()> {
    record.iter().try_for_each(|number| to.write_all(&number.to_ne_bytes()))
}

fn receive<const N: usize>(from: &mut impl Read) -> std::io::Result<[i64; N]> {
    let mut record = [0; N];
    for number in &mut record {
        let mut bytes = [0; 8];
        from.read_exact(&mut bytes)?;
        *number = i64::from_ne_bytes(bytes);
    }
    Ok(record)
}

/// Small, fast, seeded numbers for runs that are too long for a shrinking generator.
pub struct Numbers(u64);

impl Numbers {
    /// The sequence that `seed` stands for.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// 64 evenly distributed bits.
    pub fn next(&mut self) -> u64 {
        // A Weyl sequence, mixed by multiplications and shifts.
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = self.0;
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    }

    /// A number below `limit`.
    pub fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    /// True once in two times.
    pub fn flip(&mut self) -> bool {
        self.next() & 1 != 0
    }

    /// A number whose length in bits is evenly distributed, up to `bits`.
    pub fn long(&mut self, bits: u32) -> u64 {
        let length = 1 + self.below(bits.into()) as u32;
        self.next() >> (64 - length)
    }
}
