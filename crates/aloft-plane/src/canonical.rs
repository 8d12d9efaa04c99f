//! One encoding for one literal or interface, so that digests of equal ones are equal, and equal to the SDK's.
//!
//! Protobuf leaves the order of a map's entries open. Our generated maps are ordered, but not those of
//! `google.protobuf.Struct`, which the schemas of types and untyped values are made of. Putting them in order changes no
//! length, so the rest of the encoding stays as it is.

/// A message through which a `Struct` can be reached. All others are copied as they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Literal,
    LiteralCollection,
    LiteralMap,
    LiteralEntry,
    Scalar,
    Offloaded,
    Union,
    Type,
    UnionType,
    Dataset,
    DatasetMetadata,
    DatasetType,
    DatasetColumn,
    Annotation,
    Structure,
    TypeEntry,
    Struct,
    StructEntry,
    Value,
    ListValue,
    Interface,
    VariableMap,
    VariableEntry,
    Variable,
}

/// The message that field `number` of a `kind` holds, if a `Struct` can be below it.
fn field(kind: Kind, number: u64) -> Option<Kind> {
    use Kind::{
        Annotation, Dataset, DatasetColumn, DatasetMetadata, DatasetType, Interface, ListValue, Literal,
        LiteralCollection, LiteralEntry, LiteralMap, Offloaded, Scalar, Struct, StructEntry, Structure, Type,
        TypeEntry, Union, UnionType, Value, Variable, VariableEntry, VariableMap,
    };
    Some(match (kind, number) {
        (Literal, 1) => Scalar,
        (Literal, 2) => LiteralCollection,
        (Literal, 3) => LiteralMap,
        (Literal, 8) => Offloaded,
        (LiteralCollection, 1) | (LiteralEntry, 2) | (Union, 1) => Literal,
        (LiteralMap, 1) => LiteralEntry,
        (Scalar, 7) | (Type, 6) | (Annotation, 1) | (Value, 5) => Struct,
        (Scalar, 8) => Dataset,
        (Scalar, 9) => Union,
        (Offloaded, 3) | (Union, 2) | (Type, 3 | 4) | (UnionType, 1) | (DatasetColumn, 2) | (TypeEntry, 2) => Type,
        (Type, 8) | (DatasetMetadata, 1) => DatasetType,
        (Type, 9) => Annotation,
        (Type, 10) => UnionType,
        (Type, 11) => Structure,
        (Dataset, 2) => DatasetMetadata,
        (DatasetType, 1) => DatasetColumn,
        (Structure, 2) => TypeEntry,
        (Struct, 1) => StructEntry,
        (StructEntry, 2) | (ListValue, 1) => Value,
        (Value, 6) => ListValue,
        (Interface, 1 | 2) => VariableMap,
        (VariableMap, 1) => VariableEntry,
        (VariableEntry, 2) => Variable,
        (Variable, 1) => Type,
        _ => return None,
    })
}

/// The encoded `flyteidl2.core.Literal` `bytes`, with the entries of every `Struct` in it sorted by key.
pub fn literal(bytes: &[u8]) -> Vec<u8> {
    sorted(Kind::Literal, bytes)
}

/// The encoded `flyteidl2.core.TypedInterface` `bytes`, with the entries of every `Struct` in it sorted by key.
pub fn interface(bytes: &[u8]) -> Vec<u8> {
    sorted(Kind::Interface, bytes)
}

fn sorted(kind: Kind, bytes: &[u8]) -> Vec<u8> {
    let mut sorted = Vec::with_capacity(bytes.len());
    // What was just encoded can be parsed. If it could not, it would be taken as it is.
    if message(kind, bytes, &mut sorted).is_none() {
        sorted.clear();
        sorted.extend_from_slice(bytes);
    }
    sorted
}

/// Appends the message `bytes`. `None` if it is not one.
fn message(kind: Kind, mut bytes: &[u8], out: &mut Vec<u8>) -> Option<()> {
    let mut entries: Vec<(Vec<u8>, Vec<u8>)> = Vec::new();
    while !bytes.is_empty() {
        let Field { number, head, content, rest } = next(bytes)?;
        let below = field(kind, number).filter(|_| head.is_some());
        match below {
            None => out.extend_from_slice(&bytes[..bytes.len() - rest.len()]),
            Some(Kind::StructEntry) => {
                let mut entry = head?.to_vec();
                message(Kind::StructEntry, content, &mut entry)?;
                entries.push((key(content), entry));
            }
            Some(below) => {
                out.extend_from_slice(head?);
                message(below, content, out)?;
            }
        }
        bytes = rest;
    }
    entries.sort_by(|a, b| a.0.cmp(&b.0));
    entries.iter().for_each(|(_, entry)| out.extend_from_slice(entry));
    Some(())
}

/// The key of an entry; empty if it has none.
fn key(entry: &[u8]) -> Vec<u8> {
    next(entry).filter(|f| f.number == 1 && f.head.is_some()).map(|f| f.content.to_vec()).unwrap_or_default()
}

/// One field of a message.
struct Field<'a> {
    number: u64,
    /// Tag and length, if it has a length.
    head: Option<&'a [u8]>,
    content: &'a [u8],
    rest: &'a [u8],
}

fn next(bytes: &[u8]) -> Option<Field<'_>> {
    let (tag, after_tag) = varint(bytes)?;
    let number = tag >> 3;
    let (head, skip, from) = match tag & 7 {
        0 => (None, after_tag.len() - varint(after_tag)?.1.len(), after_tag),
        1 => (None, 8, after_tag),
        2 => {
            let (length, content) = varint(after_tag)?;
            (Some(&bytes[..bytes.len() - content.len()]), usize::try_from(length).ok()?, content)
        }
        5 => (None, 4, after_tag),
        _ => return None,
    };
    let (content, rest) = from.split_at_checked(skip)?;
    Some(Field { number, head, content, rest })
}

fn varint(bytes: &[u8]) -> Option<(u64, &[u8])> {
    let mut value = 0;
    for (i, byte) in bytes.iter().enumerate().take(10) {
        value |= u64::from(byte & 0x7f) << (7 * i);
        if byte & 0x80 == 0 {
            return Some((value, &bytes[i + 1..]));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn any_bytes_keep_their_length(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            prop_assert_eq!(literal(&bytes).len(), bytes.len());
        }
    }

    #[test]
    fn entries_are_sorted_wherever_a_struct_is() {
        // Literal { scalar { generic { fields { b: null } fields { a: null } } } }
        let entry = |key: u8| [0x0a, 7, 0x0a, 1, key, 0x12, 2, 0x08, 0];
        let fields = [entry(b'b'), entry(b'a')].concat();
        let bytes = [&[0x0a, 20, 0x3a, 18][..], &fields].concat();
        let expected = [&[0x0a, 20, 0x3a, 18][..], &entry(b'a'), &entry(b'b')].concat();
        assert_eq!(literal(&bytes), expected);
        assert_eq!(literal(&expected), expected);
    }
}
