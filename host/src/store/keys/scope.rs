//! What a key may be used for.

use serde::{Deserialize, Serialize};

/// Something that a customer's key may be used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(into = "&'static str", try_from = "String")]
pub enum Scope {
    /// Asking models.
    Generate,
    /// Seeing the models that it may ask.
    ModelsRead,
    /// Seeing what its customer used.
    UsageRead,
    /// Seeing its customer's keys.
    KeysRead,
    /// Seeing what is known of its customer.
    CustomerRead,
}

impl Scope {
    /// All there are.
    pub const ALL: [Self; 5] = [
        Self::Generate,
        Self::ModelsRead,
        Self::UsageRead,
        Self::KeysRead,
        Self::CustomerRead,
    ];

    /// Its name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Generate => "generate",
            Self::ModelsRead => "models:read",
            Self::UsageRead => "usage:read",
            Self::KeysRead => "keys:read",
            Self::CustomerRead => "customer:read",
        }
    }
}

impl From<Scope> for &'static str {
    fn from(scope: Scope) -> Self {
        scope.as_str()
    }
}

impl TryFrom<String> for Scope {
    type Error = String;

    fn try_from(name: String) -> Result<Self, String> {
        let found = Self::ALL.into_iter().find(|scope| scope.as_str() == name);
        found.ok_or_else(|| {
            let names = Self::ALL.map(Self::as_str).join(", ");
            format!("there is no scope {name:?}; there are {names}")
        })
    }
}
