//! How many connections may be open: each takes a file, and so does each of a component to its
//! upstream. Where clients took all, no request that is accepted could be answered.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Files of all else: the database, models, telemetry.
const OTHERS: usize = 64;

/// Raises the limit of open files to what the system allows, and says how many connections
/// leave enough of it for so many to upstreams. Where it is too low, both have the same.
pub fn room_for_connections(upstreams: usize) -> usize {
    let files = raise();
    let shared = files.saturating_sub(OTHERS);
    let for_upstreams = upstreams.min(shared / 2);
    let connections = (shared - for_upstreams).max(1);
    if for_upstreams < upstreams {
        tracing::warn!(
            files,
            connections,
            "the limit of open files is low: raise what `ulimit -Hn` shows, or lower components.instances"
        );
    }
    connections
}

/// The limit of open files, raised as far as it goes.
fn raise() -> usize {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: maximum,
        maximum,
    };
    let limit = match setrlimit(Resource::Nofile, raised) {
        Ok(()) => maximum,
        Err(error) => {
            tracing::warn!(%error, "the limit of open files stays as it is");
            current
        }
    };
    // none is a limit that is not there
    limit.map_or(usize::MAX, |limit| {
        usize::try_from(limit).unwrap_or(usize::MAX)
    })
}
