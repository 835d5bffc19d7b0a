//! What is wrong with a file, and where: one line for the log and for /debug/services.

use std::fmt;

/// Something in the folder that could not become an object.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Fault {
    /// File, and as far as they are known document and line.
    pub(super) place: String,
    /// The object's kind, as far as it is known; otherwise empty.
    pub(super) kind: String,
    /// Path of the field; empty where the whole is meant.
    pub(super) field: String,
    /// What is wrong.
    pub(super) message: String,
    /// How to mend it.
    pub(super) remedy: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.place)?;
        if !self.field.is_empty() {
            write!(f, "{}: ", self.field)?;
        }
        // Parsers' messages may have several lines; a fault has one.
        write!(f, "{}; {}", self.message.replace('\n', " "), self.remedy)
    }
}
