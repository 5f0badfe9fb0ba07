-- Colours: of ghost text, and of a draft's tokens by how sure the model is.

local M = {}

M.num_levels = 4

-- How far a level's colour is from the background, least certain first; and for 256 colours.
local DISTANCES = { 0.3, 0.5, 0.7, 0.9 }
local GREYS = { 240, 244, 248, 252 }

---@param one integer
---@param other integer
---@param share number of `one`
---@return integer
local function mix(one, other, share)
  local mixed = 0
  for shift = 16, 0, -8 do
    local a = bit.band(bit.rshift(one, shift), 0xff)
    local b = bit.band(bit.rshift(other, shift), 0xff)
    mixed = mixed + bit.lshift(math.floor(a * share + b * (1 - share) + 0.5), shift)
  end
  return mixed
end

local function define()
  local has_hint = vim.fn.hlexists("ComplHint") == 1
  vim.api.nvim_set_hl(0, "DgemmaGhost", { link = has_hint and "ComplHint" or "NonText", default = true })
  vim.api.nvim_set_hl(0, "DgemmaGhostMore", { link = has_hint and "ComplHintMore" or "MoreMsg", default = true })
  local normal = vim.api.nvim_get_hl(0, { name = "Normal" })
  local is_dark = vim.o.background == "dark"
  local fg = normal.fg or (is_dark and 0xe0e0e0 or 0x202020)
  local bg = normal.bg or (is_dark and 0x101010 or 0xf8f8f8)
  for level, distance in ipairs(DISTANCES) do
    vim.api.nvim_set_hl(0, "DgemmaCanvas" .. level, {
      fg = mix(fg, bg, distance),
      ctermfg = GREYS[is_dark and level or #GREYS + 1 - level],
      italic = true,
      default = true,
    })
  end
end

function M.setup()
  define()
  local group = vim.api.nvim_create_augroup("dgemma.highlight", { clear = true })
  vim.api.nvim_create_autocmd("ColorScheme", { group = group, callback = define })
end

---@param confidence number 0..1
---@return string
function M.of_confidence(confidence)
  local level = math.floor(confidence * M.num_levels) + 1
  return "DgemmaCanvas" .. math.max(1, math.min(level, M.num_levels))
end

return M
