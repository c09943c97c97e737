//! What can go wrong on the way to a store and back.

use std::io::{self, Write};
use std::net::TcpStream;
use std::time::Duration;

use super::http::HttpAnswer;

/// One thing that goes wrong with one request.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Fault {
    /// Answered with this status; not carried out.
    Status(u16),
    /// The connection breaks; not carried out.
    ResetBefore,
    /// Carried out, but the connection breaks before the answer.
    ResetAfter,
    /// The connection breaks in the middle of the answer.
    ResetMidBody,
    /// The connection is closed in good order before the end of the answer.
    ShortBody,
    /// An answer that is shorter than was asked for, and looks whole.
    ShortAnswer,
    /// One bit of an object is wrong; its checksum is that of the right bytes.
    WrongBytes,
    /// Half of the answer, then nothing for so long.
    Stall(Duration),
    /// The answer, so many bytes at a time with pauses in between.
    Trickle { bytes: usize, pause: Duration },
}

/// One of each, at paces that a test can wait for.
pub const ALL: [Fault; 13] = [
    Fault::Status(429),
    Fault::Status(500),
    Fault::Status(503),
    Fault::Status(401),
    Fault::Status(403),
    Fault::ResetBefore,
    Fault::ResetAfter,
    Fault::ResetMidBody,
    Fault::ShortBody,
    Fault::ShortAnswer,
    Fault::WrongBytes,
    Fault::Stall(Duration::from_secs(4)),
    // what has some thousand bytes takes longer than the 2 s that tests give a request
    Fault::Trickle { bytes: 500, pause: Duration::from_millis(200) },
];

impl Fault {
    /// Whether a run may stop for it: what is denied is denied, and what arrived with another checksum was scored
    /// already. Everything else is to be asked for again.
    pub fn may_stop(self) -> bool {
        matches!(self, Self::Status(403) | Self::WrongBytes)
    }

    /// Whether the request is carried out all the same.
    pub fn is_carried_out(self) -> bool {
        !matches!(self, Self::Status(_) | Self::ResetBefore)
    }

    /// Whether `answer` is another one with this fault: what is about a body needs one.
    pub fn changes(self, answer: &HttpAnswer) -> bool {
        match self {
            Self::Status(_) | Self::ResetBefore | Self::ResetAfter | Self::ResetMidBody => true,
            Self::WrongBytes => has_checksum(answer) && !answer.body.is_empty(),
            Self::Trickle { bytes, .. } => answer.body.len() > bytes,
            Self::ShortBody | Self::ShortAnswer | Self::Stall(_) => !answer.body.is_empty(),
        }
    }

    /// Send what is left of `answer`; `Ok(false)` where the connection is of no further use.
    pub fn send(self, answer: &HttpAnswer, stream: &mut TcpStream) -> io::Result<bool> {
        let half = answer.body.len() / 2;
        let whole = answer.head(answer.body.len());
        match self {
            Self::Status(status) => {
                let body =
                    format!("<Error><Code>Injected</Code><Message>{status} by schedule</Message></Error>");
                HttpAnswer::xml(status, body).write(stream)?;
                Ok(true)
            }
            Self::ResetBefore | Self::ResetAfter => reset(stream),
            Self::ResetMidBody => {
                stream.write_all(&whole)?;
                stream.write_all(&answer.body[..half])?;
                stream.flush()?;
                // the client is to see the bytes before the end
                std::thread::sleep(Duration::from_millis(20));
                reset(stream)
            }
            Self::ShortBody => {
                stream.write_all(&whole)?;
                stream.write_all(&answer.body[..half])?;
                Ok(false)
            }
            Self::ShortAnswer => {
                stream.write_all(&answer.head(half))?;
                stream.write_all(&answer.body[..half])?;
                Ok(true)
            }
            Self::WrongBytes => {
                let mut body = answer.body.clone();
                // nothing else that is sent has a checksum
                if has_checksum(answer)
                    && let Some(byte) = body.get_mut(half)
                {
                    *byte ^= 1;
                }
                stream.write_all(&whole)?;
                stream.write_all(&body)?;
                Ok(true)
            }
            Self::Stall(pause) => {
                stream.write_all(&whole)?;
                stream.write_all(&answer.body[..half])?;
                stream.flush()?;
                std::thread::sleep(pause);
                Ok(false)
            }
            Self::Trickle { bytes, pause } => {
                stream.write_all(&whole)?;
                for piece in answer.body.chunks(bytes) {
                    stream.write_all(piece)?;
                    stream.flush()?;
                    std::thread::sleep(pause);
                }
                Ok(true)
            }
        }
    }
}

fn has_checksum(answer: &HttpAnswer) -> bool {
    answer.headers.iter().any(|(name, _)| *name == "x-goog-hash")
}

/// Close with a reset, which the client sees at once and as an error.
fn reset(stream: &TcpStream) -> io::Result<bool> {
    rustix::net::sockopt::set_socket_linger(stream, Some(Duration::ZERO))?;
    Ok(false)
}
