//! A script in the format of a request, as the bytes to send and what happens
//! between them.

use super::{Fault, Pieces, Reply, Script, Seen};

/// A part of the way an answer goes.
pub(super) enum Step {
    Send(Vec<u8>),
    Hold,
    Cut,
}

/// The way from a request to the end of its answer.
pub(super) fn steps(script: &Script, seen: &Seen) -> Vec<Step> {
    let Some(dialect) = seen.dialect else {
        return whole(400, None, "text/plain", "the kit does not know this format");
    };
    let echo = || words(&dialect.prompt(&seen.body));
    let (words, counts) = match &script.reply {
        Reply::Words(words, counts) => (words.clone(), *counts),
        Reply::Echo => (echo(), None),
        Reply::Secret => (vec![seen.secret()], None),
        Reply::Call(name, arguments) if seen.body["stream"] == true => {
            let records = dialect.call_records(name, arguments).concat();
            return whole(200, None, "text/event-stream", &records);
        }
        Reply::Call(name, arguments) => {
            return whole(
                200,
                None,
                "application/json",
                &dialect.call(name, arguments),
            );
        }
        Reply::SecretRefusal => {
            let body = dialect.refusal(&format!("no access for {}", seen.secret()));
            return whole(400, None, "application/json", &body);
        }
        Reply::Refusal(status, retry_after) => {
            let body = dialect.refusal("refused by the script");
            return whole(*status, *retry_after, "application/json", &body);
        }
        Reply::Raw(media_type, body) => return whole(200, None, media_type, body),
    };
    let is_streamed = seen.body["stream"] == true;
    let (media_type, first, rest) = if is_streamed {
        let records = dialect.records(&words, counts, &seen.body);
        let (first, rest) = records.all.split_at(records.first_word);
        ("text/event-stream", first.to_vec(), rest.to_vec())
    } else {
        let json = dialect.whole(&words.concat(), counts);
        let half = json.floor_char_boundary(json.len() / 2);
        let (first, rest) = json.split_at(half);
        (
            "application/json",
            vec![first.to_owned()],
            vec![rest.to_owned()],
        )
    };
    let pieces = if is_streamed || script.pieces != Pieces::Dressed {
        script.pieces
    } else {
        Pieces::Records
    };
    let mut steps = Vec::new();
    if script.fault == Some(Fault::Silence) {
        steps.push(Step::Hold);
    }
    steps.push(head(200, None, media_type));
    match script.fault {
        None | Some(Fault::Silence) => steps.extend(cut([first, rest].concat(), pieces)),
        Some(fault) => {
            steps.extend(cut(first, pieces));
            match fault {
                Fault::Cut => steps.push(Step::Cut),
                Fault::Hold => {
                    steps.push(Step::Hold);
                    steps.extend(cut(rest, pieces));
                }
                Fault::Short | Fault::Silence => {}
            }
        }
    }
    steps.push(chunk(b""));
    steps
}

/// A text in words, each with the space before it.
pub fn words(text: &str) -> Vec<String> {
    let starts = text
        .match_indices(' ')
        .map(|(at, _)| at)
        .filter(|&at| at > 0);
    let ends = starts.clone().chain([text.len()]);
    let starts = [0].into_iter().chain(starts);
    starts
        .zip(ends)
        .map(|(start, end)| text[start..end].to_owned())
        .collect()
}

/// An answer in chunks of HTTP, which a client reads one by one however TCP
/// carries them.
fn cut(records: Vec<String>, pieces: Pieces) -> Vec<Step> {
    let bytes = records.concat().into_bytes();
    match pieces {
        Pieces::One => vec![chunk(&bytes)],
        Pieces::Records => records
            .iter()
            .map(|record| chunk(record.as_bytes()))
            .collect(),
        Pieces::Bytes => bytes.iter().map(|byte| chunk(&[*byte])).collect(),
        Pieces::InsideCharacters => {
            // after the first byte of each
            let pieces = bytes.split_inclusive(|byte| *byte >= 0xC0);
            pieces.map(chunk).collect()
        }
        Pieces::Dressed => {
            let dress = |record: &String| {
                let record = record.replace('\n', "\r\n");
                format!(": a comment\r\n\r\nretry: 10\r\nid: 1\r\n{record}")
            };
            records
                .iter()
                .map(|record| chunk(dress(record).as_bytes()))
                .collect()
        }
    }
}

fn whole(status: u16, retry_after: Option<u32>, media_type: &str, body: &str) -> Vec<Step> {
    vec![
        head(status, retry_after, media_type),
        chunk(body.as_bytes()),
        chunk(b""),
    ]
}

fn head(status: u16, retry_after: Option<u32>, media_type: &str) -> Step {
    let retry_after = retry_after.map_or(String::new(), |seconds| {
        format!("retry-after: {seconds}\r\n")
    });
    let head = format!(
        "HTTP/1.1 {status} Scripted\r\ncontent-type: {media_type}\r\n{retry_after}transfer-encoding: chunked\r\n\r\n"
    );
    Step::Send(head.into_bytes())
}

/// A chunk; an empty one is the last.
fn chunk(bytes: &[u8]) -> Step {
    let length = format!("{:x}\r\n", bytes.len());
    Step::Send([length.as_bytes(), bytes, b"\r\n"].concat())
}
