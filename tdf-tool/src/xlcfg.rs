// SPDX-License-Identifier: MIT OR Apache-2.0
//! The syntax of xl's domain configuration files, with line numbers.
//!
//! `tdf` reads two keys of a file that belongs to xl, so it must agree with xl on what a file says:
//! values are quoted strings, whole numbers and nested lists, statements end at a newline or `;`,
//! the last assignment of a key wins, `+=` appends. What xl would refuse is refused here, before a
//! domain exists. Strings and numbers are one type to xl; here a value remembers its quotes.

use std::fmt;

/// Lists within lists that are followed before giving up.
const DEPTH: u32 = 32;

/// A value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    /// `"text"`, `'text'`.
    Quoted(String),
    /// `10`, `0x1f`; digits as written.
    Number(String),
    /// `[ … ]`.
    List(Vec<Value>),
}

impl Value {
    /// The text of a string or number, as xl gives it out; `None` for a list.
    pub fn text(&self) -> Option<&str> {
        match self {
            Self::Quoted(text) | Self::Number(text) => Some(text),
            Self::List(_) => None,
        }
    }

    /// The whole number that xl reads here: decimal, 0octal or 0xhexadecimal.
    pub fn number(&self) -> Option<u64> {
        let text = self.text()?;
        if let Some(hex) = text.strip_prefix("0x") {
            return digits(hex, 16);
        }
        match text.strip_prefix('0') {
            Some(octal) if !octal.is_empty() => digits(octal, 8),
            _ => digits(text, 10),
        }
    }
}

fn digits(text: &str, radix: u32) -> Option<u64> {
    // `from_str_radix` would take a sign.
    if !text.chars().all(|c| c.is_digit(radix)) {
        return None;
    }
    u64::from_str_radix(text, radix).ok()
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Quoted(text) => write!(f, "\"{text}\""),
            Self::Number(text) => f.write_str(text),
            Self::List(_) => f.write_str("[ … ]"),
        }
    }
}

/// `key = value`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setting {
    /// The key.
    pub key: String,
    /// Its value, after all `+=`.
    pub value: Value,
    /// File and line of the last assignment.
    pub place: Place,
}

/// A file and a line of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// Name of the file, or `the command line`.
    pub source: String,
    /// Counted from 1.
    pub line: u32,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.source, self.line)
    }
}

/// What is wrong, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CfgError {
    /// Where.
    pub place: Place,
    /// A sentence.
    pub message: String,
}

impl fmt::Display for CfgError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.place, self.message)
    }
}

impl std::error::Error for CfgError {}

/// The settings of one domain.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Config {
    settings: Vec<Setting>,
}

impl Config {
    /// Reads `text`; messages call it `source`.
    ///
    /// # Errors
    /// The first thing that xl would refuse.
    pub fn parse(source: &str, text: &str) -> Result<Self, CfgError> {
        let mut config = Self::default();
        config.append(source, text)?;
        Ok(config)
    }

    /// Reads more settings, as `xl create FILE KEY=VALUE` does.
    ///
    /// # Errors
    /// The first thing that xl would refuse.
    pub fn append(&mut self, source: &str, text: &str) -> Result<(), CfgError> {
        Parser { source, lexer: Lexer { text: text.as_bytes(), at: 0, line: 1 }, peeked: None }
            .statements(self)
    }

    /// The setting of `key`, if there is one.
    pub fn get(&self, key: &str) -> Option<&Setting> {
        self.settings.iter().find(|s| s.key == key)
    }

    fn assign(&mut self, setting: Setting) {
        self.settings.retain(|s| s.key != setting.key);
        self.settings.push(setting);
    }
}

impl Setting {
    /// An error at this setting that shows it.
    pub fn error(&self, message: impl fmt::Display) -> CfgError {
        CfgError {
            place: self.place.clone(),
            message: format!("{} = {}: {message}", self.key, self.value),
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Token {
    Ident(String),
    Number(String),
    Quoted(String),
    /// `=`, `,`, `;`, `[`, `]`.
    Sign(u8),
    Append,
    Newline,
    End,
    /// Starts like a number, but xl has no such value.
    BadNumber(String),
    BadString(&'static str),
    Stray(char),
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ident(text) | Self::Number(text) | Self::BadNumber(text) => write!(f, "`{text}`"),
            Self::Quoted(text) => write!(f, "\"{text}\""),
            Self::Sign(sign) => write!(f, "`{}`", char::from(*sign)),
            Self::Append => f.write_str("`+=`"),
            Self::Newline => f.write_str("the end of the line"),
            Self::End => f.write_str("the end of the file"),
            Self::BadString(why) => write!(f, "a string {why}"),
            Self::Stray(c) => write!(f, "{c:?}"),
        }
    }
}

struct Lexer<'a> {
    text: &'a [u8],
    at: usize,
    line: u32,
}

impl Lexer<'_> {
    fn peek(&self) -> Option<u8> {
        self.text.get(self.at).copied()
    }

    fn run(&mut self, belongs: impl Fn(u8) -> bool) -> String {
        let rest = &self.text[self.at..];
        let length = rest.iter().position(|&b| !belongs(b)).unwrap_or(rest.len());
        self.at += length;
        String::from_utf8_lossy(&rest[..length]).into_owned()
    }

    /// The next token, and the line that it begins on.
    fn token(&mut self) -> (Token, u32) {
        while matches!(self.peek(), Some(b' ' | b'\t')) {
            self.at += 1;
        }
        if self.peek() == Some(b'#') {
            self.run(|b| b != b'\n');
        }
        let line = self.line;
        let Some(first) = self.peek() else { return (Token::End, line) };
        let token = match first {
            b'a'..=b'z' => {
                Token::Ident(self.run(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'.' | b'_')))
            }
            b'0'..=b'9' => self.number(),
            b'"' | b'\'' => self.string(first),
            b'+' if self.text.get(self.at + 1) == Some(&b'=') => {
                self.at += 2;
                Token::Append
            }
            b'\n' => {
                self.at += 1;
                self.line += 1;
                Token::Newline
            }
            b'=' | b',' | b';' | b'[' | b']' => {
                self.at += 1;
                Token::Sign(first)
            }
            _ => {
                let rest = String::from_utf8_lossy(&self.text[self.at..]);
                let stray = rest.chars().next().unwrap_or(char::REPLACEMENT_CHARACTER);
                self.at = self.text.len();
                Token::Stray(stray)
            }
        };
        (token, line)
    }

    fn number(&mut self) -> Token {
        let word = self.run(|b| !matches!(b, b' ' | b'\t' | b'\n' | b',' | b';' | b']' | b'#'));
        match word.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f' | b'x')) {
            true => Token::Number(word),
            false => Token::BadNumber(word),
        }
    }

    fn string(&mut self, quote: u8) -> Token {
        self.at += 1;
        let mut bytes = Vec::new();
        loop {
            let Some(byte) = self.peek() else {
                return Token::BadString("that does not end");
            };
            self.at += 1;
            match byte {
                b'\n' => return Token::BadString("that does not end on its line"),
                b'\\' => match self.escape() {
                    Some(byte) => bytes.push(byte),
                    None => return Token::BadString("with an escape that xl does not know"),
                },
                _ if byte == quote => break,
                _ => bytes.push(byte),
            }
        }
        Token::Quoted(String::from_utf8_lossy(&bytes).into_owned())
    }

    fn escape(&mut self) -> Option<u8> {
        let byte = self.peek()?;
        self.at += 1;
        Some(match byte {
            b'"' | b'\'' | b'\\' => byte,
            b'a' => 7,
            b'b' => 8,
            b'f' => 12,
            b'n' => b'\n',
            b'r' => b'\r',
            b't' => b'\t',
            b'v' => 11,
            b'x' => self.code(16, 2, 2)?,
            b'0'..=b'7' => {
                self.at -= 1;
                self.code(8, 1, 3)?
            }
            _ => return None,
        })
    }

    fn code(&mut self, radix: u32, least: usize, most: usize) -> Option<u8> {
        let rest = &self.text[self.at..];
        let length = rest.iter().take(most).take_while(|&&b| char::from(b).is_digit(radix)).count();
        let code = std::str::from_utf8(&rest[..length]).ok()?;
        self.at += length;
        (length >= least).then(|| u8::from_str_radix(code, radix).ok())?
    }
}

struct Parser<'a> {
    source: &'a str,
    lexer: Lexer<'a>,
    peeked: Option<(Token, u32)>,
}

impl Parser<'_> {
    fn next(&mut self) -> (Token, u32) {
        self.peeked.take().unwrap_or_else(|| self.lexer.token())
    }

    fn error<T>(&self, line: u32, message: String) -> Result<T, CfgError> {
        Err(CfgError { place: Place { source: self.source.to_owned(), line }, message })
    }

    fn statements(&mut self, config: &mut Config) -> Result<(), CfgError> {
        loop {
            match self.next() {
                (Token::End, _) => return Ok(()),
                (Token::Newline | Token::Sign(b';'), _) => {}
                (Token::Ident(key), line) => self.assignment(config, key, line)?,
                (other, line) => {
                    return self.error(line, format!("expected `key = value`, found {other}"));
                }
            }
        }
    }

    fn assignment(&mut self, config: &mut Config, key: String, line: u32) -> Result<(), CfgError> {
        let append = match self.next() {
            (Token::Sign(b'='), _) => false,
            (Token::Append, _) => true,
            (other, at) => {
                return self.error(at, format!("expected `=` after {key}, found {other}"));
            }
        };
        let (first, at) = self.next();
        let mut value = self.value(&key, first, at, DEPTH)?;
        match self.next() {
            (Token::Newline | Token::End | Token::Sign(b';'), _) => {}
            (other, at) => {
                let shown = format!("{key} = {value}");
                return self.error(
                    at,
                    format!("expected the end of the line or `;` after `{shown}`, found {other}"),
                );
            }
        }
        if append && let Some(old) = config.get(&key) {
            value = match (old.value.clone(), value) {
                (Value::List(mut old), Value::List(new)) => {
                    old.extend(new);
                    Value::List(old)
                }
                (old, new) => match (old.text(), new.text()) {
                    (Some(old), Some(new)) => Value::Quoted(format!("{old}{new}")),
                    _ => {
                        let message = format!("{key} += …: a list and a string cannot be joined");
                        return self.error(line, message);
                    }
                },
            };
        }
        let place = Place { source: self.source.to_owned(), line };
        config.assign(Setting { key, value, place });
        Ok(())
    }

    fn value(&mut self, key: &str, first: Token, line: u32, depth: u32) -> Result<Value, CfgError> {
        match first {
            Token::Quoted(text) => Ok(Value::Quoted(text)),
            Token::Number(text) => Ok(Value::Number(text)),
            Token::Sign(b'[') if depth == 0 => {
                self.error(line, format!("{key}: lists deeper than {DEPTH}"))
            }
            Token::Sign(b'[') => self.list(key, depth - 1),
            Token::BadNumber(word) => self.error(
                line,
                format!(
                    "{key} = {word}: without quotes a value is a whole number (this is xl's \
                     syntax); write {key} = \"{word}\" if that is what it should be"
                ),
            ),
            Token::Ident(word) => self.error(
                line,
                format!("{key} = {word}: a text needs quotes; write {key} = \"{word}\""),
            ),
            other => self.error(
                line,
                format!("{key}: expected a quoted string, a number or a list, found {other}"),
            ),
        }
    }

    fn list(&mut self, key: &str, depth: u32) -> Result<Value, CfgError> {
        let mut values = Vec::new();
        loop {
            match self.next_in_list() {
                (Token::Sign(b']'), _) => return Ok(Value::List(values)),
                (first, line) => values.push(self.value(key, first, line, depth)?),
            }
            match self.next_in_list() {
                (Token::Sign(b','), _) => {}
                (Token::Sign(b']'), _) => return Ok(Value::List(values)),
                (other, line) => {
                    return self.error(
                        line,
                        format!("{key}: expected `,` or `]` in a list, found {other}"),
                    );
                }
            }
        }
    }

    fn next_in_list(&mut self) -> (Token, u32) {
        loop {
            let token = self.next();
            if token.0 != Token::Newline {
                return token;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parse(text: &str) -> Config {
        Config::parse("a.cfg", text).unwrap()
    }

    fn refusal(text: &str) -> String {
        Config::parse("a.cfg", text).unwrap_err().to_string()
    }

    #[test]
    fn an_ordinary_configuration_is_read_with_its_lines() {
        let config = parse(
            "# a guest\nname = 'web'; vcpus=2\n\ndisk = [ # two\n  'a,b',\n  [\"x\", 0x10,],\n]\n\
             tdf = \"2.5\" # slow\nmemory = 010",
        );
        let line = |key| config.get(key).unwrap().place.line;
        assert_eq!((line("name"), line("vcpus"), line("disk")), (2, 2, 4));
        assert_eq!((line("tdf"), line("memory")), (8, 9));
        assert_eq!(config.get("tdf").unwrap().value, Value::Quoted("2.5".into()));
        assert_eq!(config.get("memory").unwrap().value.number(), Some(8));
        let inner = Value::List(vec![Value::Quoted("x".into()), Value::Number("0x10".into())]);
        assert_eq!(
            config.get("disk").unwrap().value,
            Value::List(vec![Value::Quoted("a,b".into()), inner])
        );
        assert_eq!(config.get("kernel"), None);
    }

    #[test]
    fn the_last_assignment_wins_and_plus_appends() {
        let mut config = parse("tdf='1'\nvif=['a']\nvif+=['b']\nextra='x'\nextra += \" y\"\n");
        config.append("the command line", "tdf=3").unwrap();
        let tdf = config.get("tdf").unwrap();
        assert_eq!(
            (tdf.value.number(), tdf.place.to_string().as_str()),
            (Some(3), "the command line:1")
        );
        assert_eq!(config.get("extra").unwrap().value.text(), Some("x y"));
        let Value::List(vif) = &config.get("vif").unwrap().value else { panic!("a list") };
        assert_eq!(vif.len(), 2);
        assert!(refusal("a='x'\na+=['y']").starts_with("a.cfg:2: "));
    }

    #[test]
    fn escapes_are_those_of_xl() {
        let config = parse(r#"a = "q\"\\\x41\101\n\'é""#);
        assert_eq!(config.get("a").unwrap().value.text(), Some("q\"\\AA\n'é"));
        for bad in [r#"a="\q""#, r#"a="\x4""#, r#"a="\777""#, "a=\"\\", "a='x\n'"] {
            assert!(refusal(bad).starts_with("a.cfg:1: "), "{bad}");
        }
    }

    #[test]
    fn what_xl_refuses_is_refused_with_line_and_reason() {
        for (text, line, says) in [
            ("name='a'\ntdf = 2.5\n", 2, "tdf = \"2.5\""),
            ("\n\ntdf = 5/2", 3, "tdf = \"5/2\""),
            ("tdf = 10s", 1, "tdf = \"10s\""),
            ("tdf = 10 s", 1, "found `s`"),
            ("tdf = ten", 1, "quotes"),
            ("tdf = -1", 1, "found '-'"),
            ("tdf", 1, "expected `=`"),
            ("tdf = \n", 1, "the end of the line"),
            ("x = [1,\n2\n3]", 3, "`,` or `]`"),
            ("x = [1,\n2\n", 3, "the end of the file"),
            ("x = [,]", 1, "found `,`"),
            ("Name = 'a'", 1, "'N'"),
            ("def f():\n", 1, "found `f`"),
            ("a=1\r\n", 1, "1\r"),
        ] {
            let message = refusal(text);
            assert!(message.starts_with(&format!("a.cfg:{line}: ")), "{text:?}: {message}");
            assert!(message.contains(says), "{text:?}: {message}");
        }
    }

    #[test]
    fn a_tower_of_lists_is_refused_and_not_climbed() {
        assert!(refusal(&format!("x={}", "[".repeat(1_000_000))).contains("deeper"));
        parse(&format!("x={}{}", "[".repeat(32), "]".repeat(32)));
    }

    #[test]
    fn numbers_are_read_as_strtoul_does() {
        for (text, number) in
            [("0", Some(0)), ("007", Some(7)), ("0xff", Some(255)), ("10x", None), ("08", None)]
        {
            assert_eq!(Value::Number(text.into()).number(), number, "{text}");
        }
        assert_eq!(Value::Quoted("+5".into()).number(), None);
        assert_eq!(Value::Quoted(String::new()).number(), None);
        assert_eq!(Value::Quoted("99999999999999999999".into()).number(), None);
    }

    proptest! {
        #[test]
        fn no_text_makes_the_parser_panic(text in r#"([a-z0-9 =,;\[\]'"\\#\n+.]|\PC){0,80}"#) {
            if let Err(error) = Config::parse("f", &text) {
                let lines = 1 + text.matches('\n').count() as u32;
                prop_assert!((1..=lines).contains(&error.place.line));
            }
        }

        #[test]
        fn what_is_written_is_read_back_on_its_line(
            before in 0usize..20, text in "[^\"\\\\\n]{0,30}", number in 0u64..u64::MAX
        ) {
            let config = parse(&format!("{}a = \"{text}\"\nb = {number}\n", "\n".repeat(before)));
            let a = config.get("a").unwrap();
            prop_assert_eq!(a.value.text(), Some(text.as_str()));
            prop_assert_eq!(a.place.line as usize, before + 1);
            prop_assert_eq!(config.get("b").unwrap().value.number(), Some(number));
        }
    }
}
