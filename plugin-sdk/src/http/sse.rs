//! Server-Sent Events, as the HTML standard of WHATWG defines the stream:
//! [`Reader`] takes bytes apart, [`Events`] an answer.

use std::mem::take;

use super::{Failure, Incoming};

/// The longest record of an API to accept, in bytes.
const RECORD_LIMIT: usize = 1 << 20;

/// A record that came whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Its `event`, `message` if it names none.
    pub event: String,
    /// Its `data`; several lines are joined by a newline.
    pub data: String,
}

/// A record is longer than allowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooLong;

/// Takes a stream apart, however its bytes are cut. `id` and `retry` serve to
/// connect again in the midst of a stream, which no API of models offers, and are
/// left out. A record that is not ended when the stream ends is none.
#[derive(Debug)]
pub struct Reader {
    /// The line that is not ended yet.
    line: Vec<u8>,
    event: String,
    /// Each line of data with a newline after it.
    data: String,
    is_at_start: bool,
    /// Whether a line feed now belongs to the carriage return before it.
    is_after_cr: bool,
    limit: usize,
}

impl Reader {
    /// A reader that accepts records of at most `limit` bytes.
    pub fn new(limit: usize) -> Self {
        Self {
            line: Vec::new(),
            event: String::new(),
            data: String::new(),
            is_at_start: true,
            is_after_cr: false,
            limit,
        }
    }

    /// Takes the next bytes; gives the records that they complete.
    ///
    /// # Errors
    /// When a record is too long. The reader is of no use then.
    pub fn read(&mut self, mut bytes: &[u8]) -> Result<Vec<Record>, TooLong> {
        if self.is_after_cr && !bytes.is_empty() {
            bytes = bytes.strip_prefix(b"\n").unwrap_or(bytes);
            self.is_after_cr = false;
        }
        let mut records = Vec::new();
        while let Some(end) = bytes.iter().position(|byte| matches!(byte, b'\r' | b'\n')) {
            let (line, rest) = bytes.split_at(end);
            self.hold(line)?;
            self.is_after_cr = rest == b"\r";
            bytes = rest.strip_prefix(b"\r\n").unwrap_or(&rest[1..]);
            records.extend(self.end_line());
        }
        self.hold(bytes)?;
        Ok(records)
    }

    fn hold(&mut self, bytes: &[u8]) -> Result<(), TooLong> {
        if self.line.len() + self.data.len() + bytes.len() > self.limit {
            return Err(TooLong);
        }
        self.line.extend_from_slice(bytes);
        Ok(())
    }

    /// A line as a whole is decoded, so no character is cut in two.
    fn end_line(&mut self) -> Option<Record> {
        let mut line = take(&mut self.line);
        if take(&mut self.is_at_start) && line.starts_with("\u{feff}".as_bytes()) {
            line.drain(..'\u{feff}'.len_utf8());
        }
        let line = String::from_utf8_lossy(&line);
        if line.is_empty() {
            return self.end_record();
        }
        let (field, value) = line.split_once(':').unwrap_or((&line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "event" => self.event = value.to_owned(),
            "data" => {
                self.data += value;
                self.data.push('\n');
            }
            // a comment's name is empty
            _ => {}
        }
        None
    }

    fn end_record(&mut self) -> Option<Record> {
        let mut event = take(&mut self.event);
        let mut data = take(&mut self.data);
        data.pop()?;
        if event.is_empty() {
            event.push_str("message");
        }
        Some(Record { event, data })
    }
}

/// The records of an answer as they come. Dropping it ends the exchange.
#[derive(Debug)]
pub struct Events {
    reader: Reader,
    answer: Incoming,
}

impl Events {
    /// Reads the records of `answer`.
    pub fn new(answer: Incoming) -> Self {
        let reader = Reader::new(RECORD_LIMIT);
        Self { reader, answer }
    }

    /// Waits for the next records: at least one, and as many as came together.
    /// `None` at the end of the answer.
    ///
    /// # Errors
    /// As [`Incoming::piece`].
    pub fn records(&mut self) -> Result<Option<Vec<Record>>, Failure> {
        while let Some(piece) = self.answer.piece()? {
            let records = self.reader.read(&piece);
            let records = records.map_err(|TooLong| Failure::TooLarge)?;
            if !records.is_empty() {
                return Ok(Some(records));
            }
        }
        Ok(None)
    }

    /// [`Incoming::drain`], when the last record of use has come.
    pub fn drain(&mut self) {
        self.answer.drain();
    }
}

#[cfg(test)]
mod tests {
    use super::{Reader, Record, TooLong};

    fn record(event: &str, data: &str) -> Record {
        Record {
            event: event.to_owned(),
            data: data.to_owned(),
        }
    }

    fn read(pieces: &[&[u8]]) -> Vec<Record> {
        let mut reader = Reader::new(1000);
        let read = pieces.iter().map(|piece| reader.read(piece).unwrap());
        read.collect::<Vec<_>>().concat()
    }

    const SAMPLE: &str = "\u{feff}data: one\n\n: a comment\ndata:two\r\rid: 7\nretry: 5\nevent: ping\r\n\
        data: {\"a\":\r\ndata:  \"é🦀\"}\r\n\r\nevent: lost\n\ndata\n\ndata:\n\ndata: unended\n";

    fn sample() -> Vec<Record> {
        vec![
            record("message", "one"),
            record("message", "two"),
            record("ping", "{\"a\":\n \"é🦀\"}"),
            record("message", ""),
            record("message", ""),
        ]
    }

    #[test]
    fn records_are_the_same_wherever_the_stream_is_cut() {
        let bytes = SAMPLE.as_bytes();
        assert_eq!(read(&[bytes]), sample(), "in one piece");
        for first in 0..=bytes.len() {
            for second in first..=bytes.len() {
                let pieces = [&bytes[..first], &bytes[first..second], &bytes[second..]];
                assert_eq!(read(&pieces), sample(), "cut at {first} and {second}");
            }
        }
        let single: Vec<&[u8]> = bytes.chunks(1).collect();
        assert_eq!(read(&single), sample(), "byte by byte");
    }

    #[test]
    fn rubbish_is_no_record() {
        assert_eq!(read(&[b"<html>\n\nfoo: bar\n\n:\n\n\n\n"]), []);
        assert_eq!(
            read(&[b"data: \xff\xc3\n\n"]),
            [record("message", "\u{fffd}\u{fffd}")]
        );
        // a byte order mark is one at the start of the stream only
        assert_eq!(read(&["\n\u{feff}data: a\n\n".as_bytes()]), []);
    }

    #[test]
    fn a_record_has_a_limit_and_a_stream_has_none() {
        let mut reader = Reader::new(10);
        for _ in 0..100 {
            assert_eq!(reader.read(b"data:12\n\n").unwrap().len(), 1);
        }
        assert_eq!(reader.read(b"data: no end of it"), Err(TooLong));
        let mut reader = Reader::new(10);
        reader.read(b"data:12\n").unwrap();
        reader.read(b"data:34\n").unwrap();
        assert_eq!(reader.read(b"data:56\n"), Err(TooLong));
    }
}
