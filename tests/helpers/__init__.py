"""What the tests share: tiny models, small runs, a stand-in for the Hub, and the scripts that tests launch."""
