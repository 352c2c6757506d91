//! Requests that are left, many at once, and many after another.

use std::time::{Duration, Instant};

use futures_util::future::join_all;

use super::answers::{TEXT, say};
use super::{Unmet, Verdict, unmet};
use crate::conformance::subject::{Manner, Subject, Way};
use crate::conformance::upstream::{Fault, Pieces, Reply};

/// In what time the upstream must see that the caller has left.
const LEAVE: Duration = Duration::from_millis(100);
/// A busy machine may be slow for once; a plugin that stays does so every time.
const TRIES: usize = 3;

/// Requests that run at once.
const AT_ONCE: usize = 16;

/// Requests after which memory is measured, and measured again.
const WARM: usize = 200;
const MANY: usize = 1_000;
/// What the process may grow by between the two: 10 KiB a request.
const GROWTH_KIB: usize = 8 << 10;
/// Connections that as many requests may take, one after another.
const CONNECTIONS: usize = 8;

pub(super) async fn cancellation(subject: &Subject) -> Verdict {
    subject
        .upstream
        .play(say(TEXT, None), Pieces::Records, Some(Fault::Hold));
    let mut slowest = Duration::ZERO;
    for manner in subject.manners() {
        let mut quickest = Duration::MAX;
        for _ in 0..TRIES {
            quickest = quickest.min(leave(subject, manner).await?);
            if quickest <= LEAVE {
                break;
            }
        }
        if quickest > LEAVE {
            return Err(format!(
                "{manner}: expected the upstream's connection to end within {} ms, got {} ms",
                LEAVE.as_millis(),
                quickest.as_millis()
            )
            .into());
        }
        slowest = slowest.max(quickest);
    }
    Ok(Some(format!(
        "left after {:.1} ms",
        slowest.as_secs_f64() * 1e3
    )))
}

/// Leaves in the middle of an answer; how long it takes until the upstream sees it.
async fn leave(subject: &Subject, manner: Manner) -> Result<Duration, Unmet> {
    let mut watch = subject.upstream.watch();
    let mut asking = Box::pin(subject.ask(subject.request(manner, "Go on")));
    tokio::select! {
        answer = &mut asking => return Err(unmet(manner, "to wait for the upstream", &answer)),
        () = watch.held() => {}
    }
    drop(asking);
    let left = Instant::now();
    let seen = tokio::time::timeout(Duration::from_secs(5), watch.left()).await;
    match seen {
        Ok(()) => Ok(left.elapsed()),
        Err(_) => Err(format!(
            "{manner}: the request to the upstream goes on after its caller left"
        )
        .into()),
    }
}

pub(super) async fn concurrency(subject: &Subject) -> Verdict {
    subject.upstream.play(Reply::Echo, Pieces::Records, None);
    for manner in subject.manners() {
        let prompts: Vec<_> = (0..AT_ONCE)
            .map(|number| {
                format!(
                    "Request {number} of many, {} in all",
                    "words ".repeat(number)
                )
            })
            .collect();
        let mut expected = prompts.clone();
        if subject.way == Way::Local {
            expected.clear();
            for prompt in &prompts {
                let (once, again) = (
                    subject.ask(short(subject, manner, prompt)).await,
                    subject.ask(short(subject, manner, prompt)).await,
                );
                if once.end.is_err() {
                    return Err(unmet(manner, "an answer", &once));
                }
                if once.text() != again.text() {
                    return Err(Unmet::Skipped("its answers to one prompt differ"));
                }
                expected.push(once.text());
            }
        }
        let asking = prompts
            .iter()
            .map(|prompt| subject.ask(short(subject, manner, prompt)));
        for (answer, expected) in join_all(asking).await.iter().zip(&expected) {
            if answer.end.is_err() || answer.text() != *expected {
                return Err(unmet(manner, &format!("the text {expected:?}"), answer));
            }
        }
    }
    Ok(None)
}

/// A request for an answer that a local model makes quickly.
fn short(subject: &Subject, manner: Manner, prompt: &str) -> plugin_sdk::Request {
    let mut request = subject.request(manner, prompt);
    request.params.max_tokens = Some(8);
    request
}

pub(super) async fn growth(subject: &Subject) -> Verdict {
    subject.upstream.play(Reply::Echo, Pieces::Records, None);
    let manners: Vec<_> = subject.manners().collect();
    let connections = subject.upstream.connections();
    let (mut warm, began) = (None, Instant::now());
    for (number, &manner) in (0..MANY).zip(manners.iter().cycle()) {
        if number == WARM {
            warm = resident_kib();
        }
        let mut request = subject.request(manner, "Once");
        request.params.max_tokens = Some(1);
        let answer = subject.ask(request).await;
        if answer.end.is_err() {
            return Err(unmet(
                manner,
                &format!("an answer to request {number}"),
                &answer,
            ));
        }
    }
    let each = began.elapsed().as_secs_f64() * 1e3 / MANY as f64;
    let connections = subject.upstream.connections() - connections;
    if connections > CONNECTIONS {
        return Err(format!(
            "expected at most {CONNECTIONS} connections to the upstream, got {connections}: \
             are answers read to their end?"
        )
        .into());
    }
    let (Some(warm), Some(now)) = (warm, resident_kib()) else {
        return Ok(Some(format!(
            "{each:.2} ms each; memory is not measured on this system"
        )));
    };
    let grown = now.saturating_sub(warm);
    if grown > GROWTH_KIB {
        return Err(format!(
            "expected at most {GROWTH_KIB} KiB more memory after {MANY} requests than after {WARM}, got {grown}"
        )
        .into());
    }
    Ok(Some(format!("{each:.2} ms each, {grown} KiB more")))
}

/// Memory of this process, where the system tells.
fn resident_kib() -> Option<usize> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.trim().strip_suffix(" kB")?.trim().parse().ok()
}
