//! Requests that take the same step one after the other. Where each wakes somebody, an
//! upstream or a client on this machine, they find awake whom the first has woken.

use std::future::poll_fn;
use std::mem;
use std::task::Poll;

/// Lets those go first that are ready on this thread now, and may be about to take the
/// same step.
///
/// Not tokio's `yield_now`, which waits until none is ready any more: with streams that
/// always are, that is for as many of their pieces as tokio allows.
pub async fn behind_others() {
    let mut is_behind = false;
    poll_fn(|context| {
        if mem::replace(&mut is_behind, true) {
            return Poll::Ready(());
        }
        // a task that wakes itself is the last of those that are ready
        context.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    #[tokio::test]
    async fn each_takes_a_step_before_any_takes_the_next() {
        let steps = Arc::new(Mutex::new(Vec::new()));
        let requests = [1, 2, 3].map(|request| {
            let steps = Arc::clone(&steps);
            tokio::spawn(async move {
                steps.lock().unwrap().push(("came", request));
                behind_others().await;
                steps.lock().unwrap().push(("went", request));
            })
        });
        for request in requests {
            request.await.unwrap();
        }
        let steps = steps.lock().unwrap();
        let went = steps.iter().position(|step| step.0 == "went");
        assert_eq!(went, Some(3), "{steps:?}");
    }
}
