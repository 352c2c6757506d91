//! The file `.env`: lines of `NAME=value`, with quotes, escapes, comments and
//! `${NAME}` for what is set already.

use std::collections::HashMap;

/// The variables of a file. One that a value names is taken from `process`, or else
/// from the lines above.
///
/// # Errors
/// With the line that cannot be read and why, without its text: it may be a secret.
pub fn parse(
    text: &str,
    process: &HashMap<String, String>,
) -> Result<HashMap<String, String>, String> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut reader = Reader {
        rest: text,
        process,
        found: HashMap::new(),
    };
    while reader.find_line() {
        let before = &text[..text.len() - reader.rest.len()];
        let line = before.matches('\n').count() + 1;
        let (name, value) = reader.pair().map_err(|why| format!("line {line}: {why}"))?;
        reader.found.insert(name, value);
    }
    Ok(reader.found)
}

struct Reader<'a> {
    rest: &'a str,
    process: &'a HashMap<String, String>,
    found: HashMap<String, String>,
}

impl<'a> Reader<'a> {
    /// Goes to the next line that says something.
    fn find_line(&mut self) -> bool {
        loop {
            self.take(char::is_whitespace);
            if !self.rest.starts_with('#') {
                return !self.rest.is_empty();
            }
            self.take(|c| c != '\n');
        }
    }

    fn pair(&mut self) -> Result<(String, String), &'static str> {
        let mut name = self.name();
        if name == "export" && !self.rest.starts_with('=') {
            name = self.name();
        }
        if !name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
            || self.next() != Some('=')
        {
            return Err("expected NAME=value");
        }
        self.take(is_blank);
        Ok((name.to_owned(), self.value()?))
    }

    fn name(&mut self) -> &'a str {
        let name = self.take(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '.'));
        self.take(is_blank);
        name
    }

    fn value(&mut self) -> Result<String, &'static str> {
        let (mut value, mut quote) = (String::new(), None);
        if self.ends() {
            return Ok(value);
        }
        while let Some(c) = self.next() {
            match (c, quote) {
                ('\0', _) => return Err("a variable holds no NUL"),
                (c, Some(open)) if c == open => quote = None,
                (c, Some('\'')) => value.push(c),
                ('\'' | '"', None) => quote = Some(c),
                // as dotenv's readers have it, it says nothing before the end of a line
                ('\\', None) if self.rest.is_empty() || self.rest.starts_with('\n') => {}
                ('\\', _) => value.push(self.escaped()?),
                ('$', _) => value += self.variable()?,
                ('\n', None) => return Ok(value),
                (c, None) if is_blank(c) => {
                    self.take(is_blank);
                    if self.ends() {
                        return Ok(value);
                    }
                    return Err("a value with spaces must be in quotes");
                }
                (c, _) => value.push(c),
            }
        }
        match quote {
            None => Ok(value),
            Some(_) => Err("a quote has no end"),
        }
    }

    /// Whether the line ends here, but for a comment.
    fn ends(&self) -> bool {
        self.rest.is_empty() || self.rest.starts_with(['\n', '#'])
    }

    fn escaped(&mut self) -> Result<char, &'static str> {
        match self.next() {
            Some('n') => Ok('\n'),
            Some(c @ ('\\' | '\'' | '"' | '$' | ' ')) => Ok(c),
            _ => Err("a backslash stands before \\, ', \", $, a space or n; or twice"),
        }
    }

    /// The value of the variable that is named here, behind a `$`; none is empty.
    fn variable(&mut self) -> Result<&str, &'static str> {
        let name = match self.rest.strip_prefix('{') {
            Some(after) => {
                self.rest = after;
                let name = self.take(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '.'));
                self.rest = self.rest.strip_prefix('}').ok_or("a ${ has no }")?;
                name
            }
            None => self.take(|c| c.is_ascii_alphanumeric() || c == '_'),
        };
        if name.is_empty() {
            return Ok("$");
        }
        let value = self.process.get(name).or_else(|| self.found.get(name));
        Ok(value.map_or("", String::as_str))
    }

    fn next(&mut self) -> Option<char> {
        let mut chars = self.rest.chars();
        let next = chars.next();
        self.rest = chars.as_str();
        next
    }

    fn take(&mut self, is_wanted: impl Fn(char) -> bool) -> &'a str {
        let end = self.rest.find(|c| !is_wanted(c));
        let (taken, rest) = self.rest.split_at(end.unwrap_or(self.rest.len()));
        self.rest = rest;
        taken
    }
}

/// Whether nothing but the end of the line, or a comment, may follow in a value.
fn is_blank(c: char) -> bool {
    c != '\n' && c.is_whitespace()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<HashMap<String, String>, String> {
        let process = HashMap::from([("HOME".to_owned(), "/home/me".to_owned())]);
        parse(text, &process)
    }

    #[test]
    fn values_are_read_as_they_are_written() {
        for (text, value) in [
            ("A=b", "b"),
            ("A=b\n", "b"),
            ("\u{feff}A=b\r\nB=c\r\n", "b"),
            ("# A=a\n\n  export A = b # not c\n", "b"),
            ("A=a\nA=b", "b"),
            ("A=", ""),
            ("A= # none", ""),
            ("A=#none", ""),
            ("A=b#c", "b#c"),
            ("A=b=c", "b=c"),
            ("A='b # $HOME \\n'", "b # $HOME \\n"),
            ("A=\"b # c\nd\"\nB=1", "b # c\nd"),
            ("A=\"b \\\"c\\\"\\n\"", "b \"c\"\n"),
            ("A=b\\ c\\$HOME", "b c$HOME"),
            ("A=b'c'\"d\"", "bcd"),
            ("A=$HOME/a", "/home/me/a"),
            ("A=\"$HOME\"", "/home/me"),
            ("HOME=other\nA=${HOME}", "/home/me"),
            ("B_C=1\nA=$B_C-${B_C}${D}", "1-1"),
            ("A=5$", "5$"),
            ("A=b\\\nB=c", "b"),
            ("A=b\u{a0}\nB=c", "b"),
            ("export=x\nA=ü", "ü"),
        ] {
            let found = read(text).unwrap_or_else(|why| panic!("{text:?}: {why}"));
            assert_eq!(found["A"], value, "{text:?}");
        }
        assert_eq!(read("").unwrap(), HashMap::new());
        assert_eq!(read("export=x").unwrap()["export"], "x");
    }

    #[test]
    fn a_line_that_cannot_be_read_is_named_without_its_text() {
        for text in [
            "secret",
            "=secret",
            "1A=secret",
            "A B=secret",
            "export",
            "A=secret b",
            "A='secret",
            "A=\"secret\nB=1",
            "A=secret\\t",
            "A=\"secret\\",
            "A=${secret",
            "A=${secret\nB=1\nC=${B}",
            "A=secret\0",
        ] {
            let why = read(&format!("# first\nB=1\n\n{text}")).unwrap_err();
            assert!(why.starts_with("line 4: "), "{text:?}: {why}");
            assert!(!why.contains("secret"), "{why}");
        }
    }
}
