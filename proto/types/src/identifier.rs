//! National and other identifiers.

/// Which register a value belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Scheme {
    /// Belgian national register number or BIS number.
    BeNn,
}

/// An identifier whose check digits hold.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Identifier;

/// Why a text is no identifier.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IdentifierError {
    /// Unknown scheme.
    #[error("unknown scheme")]
    UnknownScheme,
}
