//! Steps over the tokens of JSON (RFC 8259). That it is UTF-8 is known already.

/// Why reading stopped where it did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// The text ends before the value does.
    Incomplete,
    /// Another parser has to say what this is: malformed, or only unusual.
    Unusual,
    /// There is no room for what it says.
    Full,
}

pub type Read<T> = Result<T, Stop>;

/// A text and a place in it.
pub struct Cursor<'a> {
    pub text: &'a [u8],
    pub at: usize,
}

/// A JSON value that is no list or object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scalar<'a> {
    Null,
    Bool,
    /// As written, by JSON's grammar.
    Number(&'a [u8]),
    /// Without its quotation marks, and without escapes.
    Text(&'a [u8]),
    /// A text with escapes. What it says is left to another parser.
    Escaped,
}

impl<'a> Cursor<'a> {
    /// The next byte that is no white space, which stays.
    #[inline]
    pub fn peek(&mut self) -> Read<u8> {
        loop {
            match self.text.get(self.at) {
                None => return Err(Stop::Incomplete),
                Some(b' ' | b'\t' | b'\n' | b'\r') => self.at += 1,
                Some(&byte) => return Ok(byte),
            }
        }
    }

    /// Step over white space and `byte`.
    #[inline]
    pub fn expect(&mut self, byte: u8) -> Read<()> {
        if self.peek()? != byte {
            return Err(Stop::Unusual);
        }
        self.at += 1;
        Ok(())
    }

    /// Step over `byte`, which stands here.
    #[inline]
    fn expect_here(&mut self, byte: u8) -> Read<()> {
        if self.byte()? != byte {
            return Err(Stop::Unusual);
        }
        self.at += 1;
        Ok(())
    }

    /// Step over `bytes` if they stand here.
    #[inline]
    pub fn take(&mut self, bytes: &[u8]) -> bool {
        let here = self.text[self.at..].starts_with(bytes);
        if here {
            self.at += bytes.len();
        }
        here
    }

    /// Step over a text without escapes, and return what is within its quotation marks.
    #[inline]
    pub fn text(&mut self) -> Read<&'a [u8]> {
        match self.any_text()? {
            Scalar::Text(text) => Ok(text),
            _ => Err(Stop::Unusual),
        }
    }

    #[inline]
    fn any_text(&mut self) -> Read<Scalar<'a>> {
        self.expect(b'"')?;
        let start = self.at;
        self.at += plain_length(&self.text[start..]);
        if self.byte()? == b'"' {
            self.at += 1;
            return Ok(Scalar::Text(&self.text[start..self.at - 1]));
        }
        while self.byte()? == b'\\' {
            self.at += 1;
            self.escape()?;
            self.at += plain_length(&self.text[self.at..]);
        }
        self.expect_here(b'"')?;
        Ok(Scalar::Escaped)
    }

    /// Step over what follows a backslash. Half a surrogate pair is malformed to some, and is left to others.
    fn escape(&mut self) -> Read<()> {
        match self.byte()? {
            b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't' => self.at += 1,
            b'u' => {
                let digits = self.text.get(self.at + 1..self.at + 5).ok_or(Stop::Incomplete)?;
                let is_half = matches!(digits, [b'd' | b'D', b'8'..=b'9' | b'a'..=b'f' | b'A'..=b'F', ..]);
                if is_half || !digits.iter().all(u8::is_ascii_hexdigit) {
                    return Err(Stop::Unusual);
                }
                self.at += 5;
            }
            _ => return Err(Stop::Unusual),
        }
        Ok(())
    }

    /// Step over a scalar.
    #[inline]
    pub fn scalar(&mut self) -> Read<Scalar<'a>> {
        match self.peek()? {
            b'"' => self.any_text(),
            b'n' => self.word(b"null", Scalar::Null),
            b't' => self.word(b"true", Scalar::Bool),
            b'f' => self.word(b"false", Scalar::Bool),
            b'-' | b'0'..=b'9' => self.number().map(Scalar::Number),
            _ => Err(Stop::Unusual),
        }
    }

    #[inline]
    fn word(&mut self, word: &[u8], value: Scalar<'a>) -> Read<Scalar<'a>> {
        if self.take(word) {
            return Ok(value);
        }
        Err(if word.starts_with(&self.text[self.at..]) { Stop::Incomplete } else { Stop::Unusual })
    }

    #[inline]
    fn number(&mut self) -> Read<&'a [u8]> {
        let start = self.at;
        self.at += usize::from(self.text[self.at] == b'-');
        let whole = self.digits()?;
        if whole.len() > 1 && whole[0] == b'0' {
            return Err(Stop::Unusual);
        }
        if self.byte()? == b'.' {
            self.at += 1;
            self.digits()?;
        }
        if matches!(self.byte()?, b'e' | b'E') {
            self.at += 1;
            if matches!(self.byte()?, b'+' | b'-') {
                self.at += 1;
            }
            self.digits()?;
        }
        Ok(&self.text[start..self.at])
    }

    /// One digit or more, which something follows: of a number that the text's end may cut nothing is known.
    #[inline]
    fn digits(&mut self) -> Read<&'a [u8]> {
        let start = self.at;
        while self.byte()?.is_ascii_digit() {
            self.at += 1;
        }
        if self.at == start {
            return Err(Stop::Unusual);
        }
        Ok(&self.text[start..self.at])
    }

    #[inline]
    fn byte(&self) -> Read<u8> {
        self.text.get(self.at).copied().ok_or(Stop::Incomplete)
    }
}

const ONES: u64 = u64::from_le_bytes([1; 8]);
const HIGHS: u64 = ONES << 7;

/// How many bytes come before the first quotation mark, backslash or control character.
///
/// Eight bytes at a time: `x - ONES & !x & HIGHS` has a bit set where a byte of x is zero, and perhaps in those after
/// it, so the first one is right ("Bit Twiddling Hacks", determine if a word has a zero byte).
#[inline]
fn plain_length(text: &[u8]) -> usize {
    let mut chunks = text.chunks_exact(8);
    let mut passed = 0;
    for chunk in &mut chunks {
        let word = u64::from_le_bytes(chunk.try_into().expect("eight bytes"));
        let quote = word ^ (ONES * b'"' as u64);
        let slash = word ^ (ONES * b'\\' as u64);
        let found = (quote.wrapping_sub(ONES) & !quote)
            | (slash.wrapping_sub(ONES) & !slash)
            | (word.wrapping_sub(ONES * 0x20) & !word);
        let found = found & HIGHS;
        if found != 0 {
            return passed + found.trailing_zeros() as usize / 8;
        }
        passed += 8;
    }
    let rest = chunks.remainder();
    passed + rest.iter().position(|&b| b == b'"' || b == b'\\' || b < 0x20).unwrap_or(rest.len())
}
