//! The arguments of one request, borrowed from the buffer that was read.

use super::request::{RequestLimits, RequestScanner, Scan};

/// Where one argument lies in its buffer, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Span {
    /// Offset of the first byte.
    pub start: u32,
    /// Number of bytes.
    pub len: u32,
}

/// The arguments of one request: the command's name first, then its arguments. Copies nothing.
#[derive(Clone, Copy, Debug)]
pub struct Args<'a> {
    buffer: &'a [u8],
    spans: &'a [Span],
}

impl<'a> Args<'a> {
    /// Arguments at `spans` of `buffer`; every span must lie within the buffer.
    pub fn new(buffer: &'a [u8], spans: &'a [Span]) -> Self {
        Self { buffer, spans }
    }

    /// The arguments of one whole request, with `spans` as room for them; none if it is not whole, or no array.
    pub fn read(request: &'a [u8], spans: &'a mut Vec<Span>) -> Option<Self> {
        match RequestScanner::default().scan(request, spans, &RequestLimits::default()) {
            Ok(Scan::Frame(len)) => Some(Self::new(&request[..len], spans)),
            Ok(Scan::Nothing(_) | Scan::Inline(_) | Scan::Incomplete(_)) | Err(_) => None,
        }
    }

    /// How many arguments there are, the name included.
    pub fn len(&self) -> usize {
        self.spans.len()
    }

    /// Whether there is not even a name.
    pub fn is_empty(&self) -> bool {
        self.spans.is_empty()
    }

    /// The argument at an index, the name being 0.
    pub fn get(&self, index: usize) -> Option<&'a [u8]> {
        let span = self.spans.get(index)?;
        let start = span.start as usize;
        self.buffer.get(start..start + span.len as usize)
    }

    /// The command's name, empty if there is none.
    pub fn name(&self) -> &'a [u8] {
        self.get(0).unwrap_or_default()
    }

    /// All arguments in order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &'a [u8]> + '_ {
        (0..self.spans.len()).map(|index| self.get(index).unwrap_or_default())
    }
}
