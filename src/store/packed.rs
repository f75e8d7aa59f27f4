//! A hash of the store in one string: the result of `HGETALL`, packed by `cmsgpack.pack`.
//!
//! That is MessagePack, restricted to a list of strings: fields and values alternate. They are
//! borrowed, not copied.

use std::ops::Range;

use redis::Value;
use rmp::decode;

use super::codec::misshapen;
use crate::error::Result;

/// The fields of a packed hash that are not read yet.
#[derive(Debug)]
pub(super) struct Packed<'a> {
    whole: &'a [u8],
    rest: &'a [u8],
    /// How many strings are left: two per field.
    strings: usize,
}

/// One field of a packed hash.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Field<'a> {
    /// The byte range of both in the packed hash.
    pub(super) entry: Range<usize>,
    pub(super) name: &'a [u8],
    pub(super) value: &'a [u8],
}

impl<'a> Packed<'a> {
    /// The fields of a packed hash.
    pub(super) fn open(whole: &'a [u8]) -> Result<Self> {
        let mut rest = whole;
        let strings = decode::read_array_len(&mut rest).ok();
        let strings = strings.and_then(|strings| usize::try_from(strings).ok());
        // A field without a value, or more strings than bytes: podlink did not pack this.
        let fits = |strings: &usize| strings.is_multiple_of(2) && *strings < whole.len();
        let strings = strings.filter(fits).ok_or_else(|| foreign(whole))?;
        Ok(Self {
            whole,
            rest,
            strings,
        })
    }

    /// How many fields are left.
    pub(super) const fn len(&self) -> usize {
        self.strings / 2
    }

    fn field(&mut self) -> Option<Field<'a>> {
        let start = self.read();
        let (name, value) = (self.string()?, self.string()?);
        Some(Field {
            entry: start..self.read(),
            name,
            value,
        })
    }

    /// How many bytes were read so far.
    const fn read(&self) -> usize {
        self.whole.len() - self.rest.len()
    }

    fn string(&mut self) -> Option<&'a [u8]> {
        let length = decode::read_str_len(&mut self.rest).ok()?;
        let (string, rest) = self.rest.split_at_checked(usize::try_from(length).ok()?)?;
        self.rest = rest;
        Some(string)
    }
}

impl<'a> Iterator for Packed<'a> {
    type Item = Result<Field<'a>>;

    fn next(&mut self) -> Option<Self::Item> {
        self.strings = self.strings.checked_sub(2)?;
        Some(self.field().ok_or_else(|| {
            // The start of the next field is unknown.
            self.strings = 0;
            foreign(self.whole)
        }))
    }
}

fn foreign(packed: &[u8]) -> crate::error::Error {
    const SHOWN: usize = 40;
    misshapen(&Value::BulkString(
        packed.iter().copied().take(SHOWN).collect(),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// What `cmsgpack.pack` returns for a list of strings.
    fn pack(strings: &[Vec<u8>]) -> Vec<u8> {
        let count = u16::try_from(strings.len()).unwrap();
        let mut packed = match u8::try_from(strings.len()) {
            Ok(few @ ..=15) => vec![0x90 | few],
            _ => [&[0xdc][..], &count.to_be_bytes()].concat(),
        };
        for string in strings {
            match u16::try_from(string.len()) {
                Ok(short @ ..=31) => packed.push(0xa0 | short.to_be_bytes()[1]),
                Ok(short @ ..=255) => packed.extend([0xd9, short.to_be_bytes()[1]]),
                Ok(long) => packed.extend([&[0xda][..], &long.to_be_bytes()].concat()),
                Err(_) => {
                    let length = u32::try_from(string.len()).unwrap();
                    packed.extend([&[0xdb][..], &length.to_be_bytes()].concat());
                }
            }
            packed.extend(string);
        }
        packed
    }

    fn read(packed: &[u8]) -> Result<Vec<Vec<u8>>> {
        let mut strings = Vec::new();
        for field in Packed::open(packed)? {
            let field = field?;
            strings.extend([field.name.to_vec(), field.value.to_vec()]);
        }
        Ok(strings)
    }

    #[test]
    fn strings_of_every_length_are_read() {
        let lengths = [0, 1, 31, 32, 255, 256, 65_535, 65_536];
        let strings: Vec<Vec<u8>> = lengths.map(|length| vec![0xff; length]).into();
        assert_eq!(read(&pack(&strings)).unwrap(), strings);
        let many = vec![b"x".to_vec(); 20_000];
        assert_eq!(read(&pack(&many)).unwrap(), many);
        assert_eq!(read(&pack(&[])).unwrap(), Vec::<Vec<u8>>::new());
    }

    #[test]
    fn an_entry_is_where_both_lie() {
        let packed = pack(&[b"0".to_vec(), b"{}".to_vec(), b"1".to_vec(), b"[]".to_vec()]);
        let entries: Vec<_> = Packed::open(&packed)
            .unwrap()
            .map(|field| packed[field.unwrap().entry].to_vec())
            .collect();
        assert_eq!(entries, [b"\xa10\xa2{}", b"\xa11\xa2[]"]);
    }

    #[test]
    fn what_is_no_list_of_pairs_is_refused() {
        let whole = pack(&[b"0".to_vec(), b"{}".to_vec()]);
        for end in 0..whole.len() {
            assert!(read(&whole[..end]).is_err(), "{end} bytes of {whole:?}");
        }
        let number = [0x92, 0xa1, b'0', 0x07];
        let odd = pack(&[b"0".to_vec()]);
        let endless = [0xdd, 0xff, 0xff, 0xff, 0xfe, 0xa0];
        for foreign in [&number[..], &odd, &endless, b"{}", b""] {
            assert!(read(foreign).is_err(), "{foreign:?}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            let _ = read(&bytes);
        }
    }
}
