//! Components of this repository as native plugins: the same source without the
//! sandbox, for `tests/overhead` to compare with. No build for users has them.

#[path = "../../../../plugins/lawgent-thinking/src/lib.rs"]
mod lawgent_thinking;
#[path = "../../../../plugins/offline/src/lib.rs"]
mod offline;

pub(super) use self::lawgent_thinking::Completions;
pub(super) use self::offline::Offline;
