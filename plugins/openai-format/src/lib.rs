//! The format of OpenAI's API, as far as text completions and chats share it:
//! what every request says, the body of a completion, and the answers.

mod answer;
mod body;
mod calls;
mod wire;

pub use answer::Decoder;
pub use body::{Completion, Options};
