//! Where in a value we are, and how much work is left.
//!
//! Types, schemas and values arrive from anyone who can call the service, and msgpack bytes are not bounded by the
//! protobuf decoder's recursion limit. Every recursive function here starts with [`Path::step`], so that neither the
//! stack nor the time of a request depends on what is in it.

use std::cell::Cell;

use super::error::{Problem, TranslateError};

/// Protobuf runtimes refuse messages nested about 100 deep, and one JSON level costs two or three of those once it is a
/// `google.protobuf.Struct`; a deeper value could be produced and then not be read by any client.
pub(super) const MAX_DEPTH: usize = 64;

/// Steps per request, a step being one value or schema node visited or copied. Nested unions try their variants in turn
/// and every union literal carries a copy of its type, so the work is not linear in the request; this bounds it at a few
/// seconds and a few hundred megabytes in the worst case. An honest form is thousands of steps.
pub(super) const MAX_STEPS: u32 = 4_000_000;

pub(super) struct Budget {
    left: Cell<u32>,
}

/// A linked list along the call stack: descending costs nothing, and text is made only for an error.
#[derive(Clone, Copy)]
pub(super) struct Path<'p> {
    parent: Option<&'p Path<'p>>,
    segment: Segment<'p>,
    depth: usize,
    budget: &'p Budget,
}

#[derive(Clone, Copy)]
enum Segment<'p> {
    Name(&'p str),
    Index(usize),
    /// Deeper in the type and at the same place in the value: a union's variant.
    Here,
}

// === impl Budget ===

impl Budget {
    pub(super) fn new() -> Self {
        Self { left: Cell::new(MAX_STEPS) }
    }
}

// === impl Path ===

impl<'p> Path<'p> {
    pub(super) fn root(name: &'p str, budget: &'p Budget) -> Self {
        Self { parent: None, segment: Segment::Name(name), depth: 0, budget }
    }

    pub(super) fn key<'c>(&'c self, name: &'c str) -> Path<'c> {
        self.child(Segment::Name(name))
    }

    pub(super) fn index(&self, index: usize) -> Path<'_> {
        self.child(Segment::Index(index))
    }

    pub(super) fn here(&self) -> Path<'_> {
        self.child(Segment::Here)
    }

    fn child<'c>(&'c self, segment: Segment<'c>) -> Path<'c> {
        Path { parent: Some(self), segment, depth: self.depth + 1, budget: self.budget }
    }

    /// Counts one node and refuses what is too deep or too much. First line of every recursive function.
    pub(super) fn step(&self) -> Result<(), TranslateError> {
        if self.depth > MAX_DEPTH {
            return Err(self.error(Problem::TooDeep { limit: MAX_DEPTH }));
        }
        self.charge(1)
    }

    pub(super) fn charge(&self, steps: u32) -> Result<(), TranslateError> {
        match self.budget.left.get().checked_sub(steps) {
            Some(left) => {
                self.budget.left.set(left);
                Ok(())
            }
            None => {
                self.budget.left.set(0);
                Err(self.error(Problem::TooLarge { limit: MAX_STEPS }))
            }
        }
    }

    pub(super) fn error(&self, problem: Problem) -> TranslateError {
        TranslateError::new(self.to_text(), problem)
    }

    fn to_text(self) -> String {
        let mut segments = Vec::new();
        let mut at = Some(&self);
        while let Some(path) = at {
            segments.push(path.segment);
            at = path.parent;
        }
        let mut text = String::new();
        for segment in segments.iter().rev() {
            match segment {
                Segment::Name(name) if text.is_empty() => text.push_str(name),
                Segment::Name(name) => {
                    text.push('.');
                    text.push_str(name);
                }
                Segment::Index(index) => text.push_str(&format!("[{index}]")),
                Segment::Here => {}
            }
        }
        text
    }
}
