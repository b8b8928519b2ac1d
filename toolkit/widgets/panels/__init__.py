"""What explorers are made of: each part takes frames and callables, and knows no explorer."""
