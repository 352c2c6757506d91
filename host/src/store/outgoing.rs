//! What others are told of changes: by messages in the database, which a task sends.

use tokio::sync::Notify;

/// Who is told of changes, besides those who ask.
#[derive(Clone, Copy, Debug, Default)]
pub struct Audience {
    /// Stripe, of customers and of what they used.
    pub stripe: bool,
    /// The operator's webhook, of what nears its end.
    pub webhook: bool,
}

/// Messages to one of them; nothing is written for one that is not told.
#[derive(Debug)]
pub(super) struct Outgoing(Option<Notify>);

impl Outgoing {
    pub fn new(is_told: bool) -> Self {
        Self(is_told.then(Notify::new))
    }

    /// Whether there are to be messages.
    pub fn is_on(&self) -> bool {
        self.0.is_some()
    }

    /// Says that there is something new to be sent.
    pub fn wake(&self) {
        if let Some(new) = &self.0 {
            new.notify_one();
        }
    }

    /// Waits until there is something new to be sent, since the last time.
    pub async fn changed(&self) {
        match &self.0 {
            Some(new) => new.notified().await,
            None => std::future::pending().await,
        }
    }
}
