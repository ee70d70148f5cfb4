//! What goes into a template and what comes out of a tokenizer.

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Longest text of one example, bytes: a million tokens or more, the longest that any model takes. All after a run's
/// `max_seq_length` is cut off anyway.
pub(crate) const LONGEST_TEXT: usize = 4 << 20;

/// One turn of a chat. Keys beyond role and content (tool calls, names) are handed to the template as they are.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Message {
    /// Role of the speaker: `system`, `user`, `assistant` or another that the template knows.
    pub role: String,
    /// Text of the message.
    #[serde(default)]
    pub content: String,
    /// Any other keys of the message, for the template.
    #[serde(flatten)]
    pub rest: serde_json::Map<String, Value>,
}

/// Tokens of a row, and how many of them are prompt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Encoded {
    /// All tokens of the row, those of the prompt first.
    pub tokens: Vec<u32>,
    /// Number of tokens that lie wholly in the prompt.
    pub prompt: usize,
}
